"""Fail if a test was skipped for a reason that this machine could have removed.

Allowed reasons: a GPU that is not there, and the reference data beside the checkout.
"""

import sys
import xml.etree.ElementTree as ET

ALLOWED = ("needs a GPU", "reference data")


def main(reports: list[str]) -> int:
    cases = [case for report in reports for case in ET.parse(report).iter("testcase")]
    needless = []
    for case in cases:
        skipped = case.find("skipped")
        reason = "" if skipped is None else skipped.get("message", "")
        if skipped is not None and not any(word in reason for word in ALLOWED):
            needless.append(f"{case.get('classname')}::{case.get('name')}: {reason}")
    print(f"{len(cases)} tests, {len(needless)} skipped without need", *needless, sep="\n  ")
    return 1 if needless or not cases else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
