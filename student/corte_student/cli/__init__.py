"""`corte-student`: the verbs, and the one place where an error becomes a line and an exit code.

Rule 1: `--help` loads no torch. A verb's module imports what it needs inside its function.
Rule 2: an expected failure is one line on stderr; CORTE_DEBUG=1 brings the traceback back.
"""

import logging
import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from corte_protocol import CorteError
from corte_student.cli.collect import collect
from corte_student.cli.doctor import doctor
from corte_student.cli.evaluate import evaluate
from corte_student.cli.explain import explain
from corte_student.cli.inspect import inspect
from corte_student.cli.ledger import ledger
from corte_student.cli.plan import plan
from corte_student.cli.predict import predict
from corte_student.cli.train import train

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def first_cause(group: BaseException) -> BaseException:
    """The leaf that explains `group`: a task group wraps even a single failure.

    Of several the first that is ours, because the others are often its consequence.
    """
    leaves = list(_leaves(group))
    return next((leaf for leaf in leaves if isinstance(leaf, CorteError)), leaves[0])


def _leaves(exc: BaseException) -> list[BaseException]:
    if not isinstance(exc, BaseExceptionGroup):
        return [exc]
    return [leaf for part in exc.exceptions for leaf in _leaves(part)]


class _Verbs(TyperGroup):
    """Maps errors of every verb, so that no verb has to."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; an error of ours ends it with one line and its exit code."""
        try:
            return super().invoke(ctx)
        except (CorteError, BaseExceptionGroup, KeyboardInterrupt) as exc:
            cause = first_cause(exc)
            if os.environ.get("CORTE_DEBUG") == "1":
                raise
            if isinstance(cause, KeyboardInterrupt):
                typer.echo("interrupted", err=True)
                raise typer.Exit(INTERRUPTED) from exc
            if not isinstance(cause, CorteError):
                raise  # a fault of this program: the traceback is what its authors need
            typer.echo(f"error: {' '.join(str(cause).split())}", err=True)
            raise typer.Exit(getattr(cause, "exit_code", 1)) from exc


app = typer.Typer(
    cls=_Verbs,
    name="corte-student",
    help="Train a lightweight segmentation model from a black box's predictions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"corte-student {version('corte-student')}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    # timm warns about its own weights' metadata; nothing a user could act on
    logging.getLogger("timm").setLevel(logging.ERROR)


for _verb in (plan, collect, train, evaluate, predict, inspect, explain, doctor):
    app.command()(_verb)
app.add_typer(ledger)
