"""The command `stabilizer`."""

from __future__ import annotations

import typer

from stabilizer.cli import backtest, db, follow, import_logs, rules, serve, token

app = typer.Typer(
    name="stabilizer",
    help="Watches training jobs, decides, and sends them commands.",
    no_args_is_help=True,
    # Their tracebacks show local variables, secrets included.
    pretty_exceptions_enable=False,
)
app.command("serve")(serve.serve)
app.command("backtest")(backtest.backtest)
app.command("import")(import_logs.import_logs)
app.command("follow")(follow.follow)
app.add_typer(rules.app, name="rules")
app.add_typer(db.app, name="db")
app.add_typer(token.app, name="token")
