"""Train until an audit event concerns the checkpoint of step 4, then kill this process.

Arguments: the event, and those of the trainer.
"""

import os
import signal
import sys

from trainer.__main__ import app


def hook(event, arguments):
    if event == sys.argv[1] and "step-00000004" in str(arguments[0]):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.addaudithook(hook)
    app(sys.argv[2:], prog_name="trainer")
