"""`corte-student ledger`: what the answers paid for are worth, whether they are intact, and moving them.

Strategy: every verb opens one ledger, follows one generator of `corte_student.ledger` with a bar on stderr,
and tells the outcome on stdout.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol, TypeVar

import typer

from corte_student.cli.access import LedgerFile
from corte_student.errors import LedgerError, SettingsError

if TYPE_CHECKING:  # loaded inside the functions: --help must stay quick
    from corte_student.ledger import Ledger, Spending, Stock

ledger = typer.Typer(
    name="ledger",
    help="Look after the answers that were paid for.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Teacher = Annotated[str | None, typer.Option("--teacher", help="Only answers of this teacher.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Only answers of this revision.")]


class _Step(Protocol):
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...


S = TypeVar("S", bound=_Step)


@ledger.command()
def stats(
    file: LedgerFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Show the answers by teacher, revision and level, and what was spent; checks every answer."""
    from corte_student.ledger import take_stock, verify

    with _opened(file) as opened:
        checked = _follow("check", verify(opened))
        stock = take_stock(opened)
        if as_json:
            typer.echo(json.dumps(_as_data(stock, checked.damaged)))
        else:
            _show(opened.path, stock, checked.damaged)


@ledger.command()
def verify(
    file: LedgerFile = None,
    drop: Annotated[
        bool, typer.Option("--drop", help="Remove damaged answers; they are asked anew.")
    ] = False,
) -> None:
    """Check that every answer is what was received; exit 4 if damaged ones remain."""
    from corte_student.ledger import verify as check

    with _opened(file) as opened:
        checked = _follow("verify", check(opened, drop=drop))
        removed = f", {checked.dropped} removed" if drop else ""
        typer.echo(f"{checked.done} answers checked, {checked.damaged} damaged{removed}")
        if checked.damaged and not drop:
            raise LedgerError(
                f"{checked.damaged} of {checked.done} answers in {opened.path} are damaged and never used: "
                "take good ones in with `corte-student ledger merge`, or remove them with --drop"
            )


@ledger.command()
def export(
    to: Annotated[Path, typer.Argument(metavar="DIR_OR_FILE", help="A new file, or the folder for it.")],
    teacher: Teacher = None,
    revision: Revision = None,
    file: LedgerFile = None,
) -> None:
    """Write answers, and what was paid for them, to one portable file; `merge` takes it in."""
    from corte_student.ledger import Selection
    from corte_student.ledger import export as write

    with _opened(file) as opened:
        end = _follow("export", write(opened, to, Selection(teacher, revision)))
    size = f"{end.frame_bytes / 1e6:.1f} MB"
    typer.echo(f"{end.answers} answers ({size}) and {end.payments} payments are in {end.file}")
    if end.damaged:
        typer.echo(f"{end.damaged} damaged answers were left out", err=True)


@ledger.command()
def merge(
    others: Annotated[list[Path], typer.Argument(metavar="OTHER...", help="Ledgers; they are only read.")],
    file: LedgerFile = None,
) -> None:
    """Take in the answers and the spending of other ledgers; doing so twice changes nothing."""
    from corte_student.ledger import merge as take

    with _opened(file, make=True) as opened:
        for other in others:
            end = _follow(f"merge {other.name}", take(opened, other))
            typer.echo(
                f"{other}: {end.taken} answers taken, {end.duplicates} known before, {end.damaged} damaged; "
                f"{end.payments} payments taken"
            )


@ledger.command()
def prune(
    teacher: Teacher = None,
    revision: Revision = None,
    view: Annotated[str | None, typer.Option("--view", help="Only answers to this view.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
    file: LedgerFile = None,
) -> None:
    """Remove answers of a teacher or revision; what they cost stays counted."""
    from corte_student.ledger import Selection, weigh
    from corte_student.ledger import prune as remove

    if teacher is None and revision is None:
        raise SettingsError("say what to remove: --teacher or --revision, as `ledger stats` shows them")
    chosen = Selection(teacher, revision, view)
    with _opened(file) as opened:
        answers, size, spent = weigh(opened, chosen)
        paid = f"paid with {spent.money()}" if spent.micros else "of no known cost"
        typer.echo(f"{chosen}: {answers} answers, {size / 1e6:.1f} MB, {paid}")
        if dry_run or not answers:
            return
        if not yes and not _agreed():
            raise SettingsError("nothing was removed: say --yes to part with these answers")
        end = _follow("prune", remove(opened, chosen))
        typer.echo(f"{end.done} answers removed")


@contextlib.contextmanager
def _opened(file: Path | None, *, make: bool = False) -> "Iterator[Ledger]":
    from corte_student.ledger import Ledger, default_ledger_path

    path = file or default_ledger_path()
    if not make and not path.exists():
        raise LedgerError(f"there is no ledger {path}: name one with --ledger")
    with contextlib.closing(Ledger.open(path)) as opened:
        yield opened


def _follow(title: str, steps: Iterator[S]) -> S:
    """Run to the end with a bar; the last step."""
    from corte_student.report.progress import Progress

    step = next(steps)
    with Progress(step.total, title) as bar:
        for step in steps:
            bar.update(min(step.done, step.total))  # others may add meanwhile
    return step


def _agreed() -> bool:
    return sys.stdin.isatty() and typer.confirm("remove them?")


def _spent_data(spent: "Spending") -> dict[str, object]:
    return {
        "requests": spent.requests,
        "answered": spent.answered,
        "unanswered": spent.unanswered,
        "spent_micros": dict(spent.micros),
    }


def _as_data(stock: "Stock", damaged: int) -> dict[str, object]:
    from dataclasses import asdict

    return {
        "answers": stock.answers,
        "bytes": stock.frame_bytes,
        "damaged": damaged,
        "claims": stock.claims,
        "groups": [asdict(group) for group in stock.groups],
        "spending": {teacher: _spent_data(spent) for teacher, spent in stock.spending.items()},
        "file_bytes": stock.file_bytes,
        "free_bytes": stock.free_bytes,
    }


def _show(path: Path, stock: "Stock", damaged: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout)
    table = Table(box=None, padding=(0, 1))
    for column in ("teacher", "revision", "view", "level"):
        table.add_column(column)
    for column in ("answers", "MB"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in stock.groups:
        names = (Text(name) for name in (one.teacher, one.revision, one.view, one.level))
        table.add_row(*names, str(one.answers), f"{one.frame_bytes / 1e6:.1f}")
    table.add_section()
    table.add_row("all", "", "", "", str(stock.answers), f"{stock.frame_bytes / 1e6:.1f}", style="bold")
    console.print(Text(str(path), style="bold"), soft_wrap=True)
    console.print(table)
    for teacher, spent in stock.spending.items():
        line = f"{teacher}: {spent.money()} in {spent.requests} requests, {spent.unanswered} unanswered"
        console.print(Text(line), soft_wrap=True)
    if not stock.spending:
        console.print(Text("no requests are recorded as paid"), soft_wrap=True)
    console.print(Text(f"{stock.claims} claims, {damaged} damaged answers"), soft_wrap=True)
    disk = f"file {stock.file_bytes / 1e6:.1f} MB, free on its disk {stock.free_bytes / 1e9:.1f} GB"
    console.print(Text(disk), soft_wrap=True)
