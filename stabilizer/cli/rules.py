"""`stabilizer rules`: check, test, explain, show and apply rule files."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ValidationError

from stabilizer.cli.failures import EXIT_UNUSABLE, exit_on_error
from stabilizer.cli.run_stores import HttpRunStore, TokenOption
from stabilizer.errors import ConfigurationError, RuleDefinitionError, RuleFileError
from stabilizer.protocol.decisions import Severity
from stabilizer.protocol.queries import RulesUpdate
from stabilizer.replay.cases import load_cases
from stabilizer.rules.detector_specs import DetectSpec
from stabilizer.rules.loader import RuleFile, default_rules, load_rules
from stabilizer.rules.spec import PolicySpec, RuleSpec
from stabilizer.rules.warnings import warnings_of

app = typer.Typer(help="Rule files.", no_args_is_help=True)


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Rule files (YAML).")],
) -> None:
    """Check rule files; print one line `file:line: field: message` per error.

    A warning names what would never have an effect; the file is valid all the same.
    """
    num_bad = 0
    for file in files:
        mistakes = _mistakes(file)
        num_bad += bool(mistakes)
        for mistake in mistakes:
            typer.echo(mistake)
    if num_bad:
        raise typer.Exit(EXIT_UNUSABLE)


def _mistakes(file: Path) -> list[str]:
    with exit_on_error():
        text = _read(file)
    try:
        rules = load_rules(text, str(file))
    except RuleFileError as group:
        return [str(error) for error in _leaves(group)]
    typer.echo(f"{file}: ok, {len(rules.rules)} rules, hash {rules.hash}")
    for warning in warnings_of(rules):
        typer.echo(f"{file}: warning: {warning}", err=True)
    return []


def load_rule_file(file: Path | None) -> RuleFile:
    """Load a rule file; the shipped rules without one.

    Raises:
        ConfigurationError: It cannot be read.
        RuleFileError: It has mistakes.
    """
    return default_rules() if file is None else load_rules(_read(file), str(file))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: cannot be read: {error}") from error


def _leaves(group: ExceptionGroup[RuleDefinitionError]) -> list[RuleDefinitionError]:
    found: list[RuleDefinitionError] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, ExceptionGroup) else [error])
    return found


@app.command()
def show() -> None:
    """Print the default rule file, used by runs without rules of their own."""
    typer.echo(default_rules().text, nl=False)


@app.command("test")
def run_tests(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Tests of rules (YAML).")],
) -> None:
    """Play series through rules and compare what happens with what is expected.

    A test that fails prints what is expected (-) and what happened (+); the status is then 1.
    """
    num_failed = num_cases = 0
    for file in files:
        with exit_on_error():
            cases = load_cases(file)
        for case in cases:
            difference = case.difference(case.play())
            num_cases += 1
            num_failed += bool(difference)
            typer.echo(f"{'FAILED' if difference else 'ok':6} {file}: {case.name}")
            for line in difference:
                typer.echo(f"    {line}")
    typer.echo(f"{num_cases - num_failed} of {num_cases} tests passed")
    if num_failed:
        raise typer.Exit(1)


RunOption = Annotated[
    str | None, typer.Option("--run", help="Id of a run; else the collector's own rules.")
]
CollectorUrl = Annotated[
    str, typer.Option("--collector", help="URL of a collector, http or https.", show_default=True)
]


@app.command()
def apply(  # noqa: PLR0913  one argument for each option
    file: Annotated[Path | None, typer.Argument(help="Rule file (YAML).")] = None,
    *,
    reason: Annotated[str, typer.Option(help="Why, for the audit log.")],
    version: Annotated[
        int | None, typer.Option(min=1, help="Restore this version instead of a file.")
    ] = None,
    run: RunOption = None,
    collector: CollectorUrl = "http://127.0.0.1:8000",
    token: TokenOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and compare only; change nothing.")
    ] = False,
) -> None:
    """Change the rules of a run, or of all live runs without rules of their own.

    Each run changes over between two steps. Rules that stay as they are keep their state; the
    alerts of others end. An invalid file is refused with all its errors.
    """
    with exit_on_error():
        if (file is None) == (version is None):
            raise ConfigurationError("give either FILE or --version")
        text = None if file is None else load_rule_file(file).text
        update = _update(text, version, reason, dry_run=dry_run)
        change = HttpRunStore(collector, token).change_rules(run, update)
    head = "would be" if dry_run else "is"
    typer.echo(f"version {change.version} {head} in force, hash {change.hash}")
    for what in ("kept", "changed", "added", "removed"):
        names = getattr(change, what)
        typer.echo(f"  {what}: {', '.join(names) or 'none'}")
    if run is None:
        typer.echo(f"  live runs without rules of their own: {change.num_runs}")
    for warning in change.warnings:
        typer.echo(f"warning: {warning}", err=True)


def _update(text: str | None, version: int | None, reason: str, *, dry_run: bool) -> RulesUpdate:
    try:
        return RulesUpdate(text=text, version=version, reason=reason, dry_run=dry_run)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ConfigurationError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


@app.command()
def versions(
    run: RunOption = None,
    collector: CollectorUrl = "http://127.0.0.1:8000",
    token: TokenOption = None,
    show_version: Annotated[
        int | None, typer.Option("--show", min=1, help="Print the file of this version.")
    ] = None,
) -> None:
    """List the versions of the rules of a run, or of the collector; the newest is in force."""
    with exit_on_error():
        history = HttpRunStore(collector, token).rules_history(run)
        found = [one for one in history.versions if one.number == show_version]
        if show_version is not None and not found:
            raise ConfigurationError(f"there is no version {show_version} of these rules")
    if found:
        typer.echo(found[0].text, nl=False)
        return
    for one in history.versions:
        made = f"{one.created_at:%Y-%m-%d %H:%M}"
        typer.echo(f"{one.number:4}  {made}  {one.hash}  {one.actor}  {one.reason}".rstrip())


@app.command()
def explain(
    name: Annotated[str, typer.Argument(help="Name of a rule.")],
    rules: Annotated[Path | None, typer.Option(help="Rule file; else the shipped rules.")] = None,
) -> None:
    """Explain a rule: what it watches, when it fires, and what the policy does then."""
    with exit_on_error():
        rule_file = load_rule_file(rules)
        found = next((rule for rule in rule_file.rules if rule.name == name), None)
        if found is None:
            names = ", ".join(rule.name for rule in rule_file.rules)
            raise ConfigurationError(f"name is {name!r}; {rule_file.file} has: {names}")
    typer.echo("\n".join(_explain(found, rule_file.policy)))


def _explain(rule: RuleSpec, policy: PolicySpec) -> Iterator[str]:
    yield f"{rule.name} ({rule.severity})"
    yield from (f"  {line}" for line in rule.doc.splitlines())
    if rule.source:
        yield f"  Source: {rule.source}"
    yield from _condition(rule)
    yield "  Fires:"
    known = {"name", "doc", "source", "select", "detect", "when"}
    yield from _values(rule, "    ", leave_out=known)
    if rule.signal:
        yield "  Policy: none; it is a signal for other rules"
        return
    yield f"  Policy, in mode {policy.mode}:"
    yield from (f"    {line}" for line in _reasons(rule, policy))
    yield "  Ladder:"
    for number, rung in enumerate(policy.ladder, start=1):
        content = rung.model_dump(mode="json", exclude_none=True)
        yield f"    {number}. {json.dumps({name: part for name, part in content.items() if part})}"


def _condition(rule: RuleSpec) -> Iterator[str]:
    if rule.when is not None:
        condition = rule.when.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        yield f"  When: {json.dumps(condition)}"
    if rule.select is not None and rule.detect is not None:
        yield f"  Watches: {rule.select}"
        detector, parts = rule.detect.detector, DetectSpec.model_fields
        given = next(name for name in parts if getattr(rule.detect, name) is not None)
        yield f"  Detector: {given}. {(detector.__doc__ or '').strip()}"
        yield from _values(detector, "    ")


def _values(model: BaseModel, indent: str, leave_out: Collection[str] = ()) -> Iterator[str]:
    """Show the fields of a model; those that the file does not give are defaults."""
    content = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    for name, field in type(model).model_fields.items():
        shown = field.alias or name
        value = content.get(shown)
        if name in leave_out or value is None or value == "":
            continue
        default = "" if name in model.model_fields_set else "  (default)"
        yield f"{indent}{shown}: {json.dumps(value)}{default}"


def _reasons(rule: RuleSpec, policy: PolicySpec) -> Iterator[str]:
    """Describe the conditions of `act_on` in which the rule counts."""
    meanings = {
        "any": "enough to act on",
        "or_all": "one of the signals that are acted on together",
        "after_wait": f"enough to act on if it still holds {policy.wait} steps after it fired",
    }
    severities = list(Severity)
    counts = {f"rule:{rule.name}"} | {
        f"severity:{severity}" for severity in severities[: severities.index(rule.severity) + 1]
    }
    is_reason = False
    for name, items in policy.act_on.items.items():
        matching = [item for item in items if counts & set(item.split("|"))]
        if matching:
            is_reason = True
            yield f"{meanings.get(name, name)} ({name}: {', '.join(matching)})"
    if not is_reason:
        yield "an alert; no reason to act"
