"""`corte-student plan`: what a run would cost, after asking about three images at most."""

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corte_student.cli.access import (
    InsecureHttp,
    KeyFile,
    LedgerFile,
    Offline,
    PricePer1k,
    TeacherConfigFile,
    TeacherKind,
    TeacherUrl,
    access_of,
    purse_of,
)
from corte_student.cli.asking import ClassesFile, Images, Method, Recipes, Sets, Wanted, wanted

if TYPE_CHECKING:  # loaded inside the functions: --help must stay quick
    from corte_student.planning import Estimate
    from corte_student.session import Session


def plan(
    images: Images,
    teacher_url: TeacherUrl = None,
    teacher_kind: TeacherKind = None,
    teacher_config: TeacherConfigFile = None,
    recipe: Recipes = None,
    set_: Sets = None,
    classes: ClassesFile = None,
    method: Method = None,
    steps: Annotated[int | None, typer.Option("--steps", help="As for train")] = None,
    ledger: LedgerFile = None,
    price_per_1k: PricePer1k = None,
    key_file: KeyFile = None,
    insecure_http: InsecureHttp = False,
    offline: Offline = False,
    training: Annotated[
        bool, typer.Option("--training/--no-training", help="Time two training steps as well")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout")] = False,
) -> None:
    """Tell requests, GB, minutes, money, disk and training time before they are spent.

    At most three images are asked about; they are paid for, and kept for the run.
    """
    from corte_student.data.folder import find_images
    from corte_student.session import Session

    what = wanted(recipe, set_, classes, {"method": method, "steps": steps})
    access = access_of(teacher_url, teacher_kind, teacher_config, key_file, insecure_http=insecure_http)
    purse = purse_of(access, price_per_1k, recipe_price=what.price)
    paths = find_images(images)
    settings = what.settings
    session = Session(access, purse, ledger, settings.deadline_s, settings.in_flight, offline)
    found, answered = asyncio.run(_estimate(session, what, paths))
    step_s = _step_seconds(session, what, answered) if training and answered else None
    if as_json:
        typer.echo(json.dumps(as_object(found, session, what, step_s)))
    else:
        _show(found, session, what, step_s)


async def _estimate(session: "Session", what: Wanted, paths: list[Path]) -> tuple["Estimate", list[Path]]:
    """The estimate, and up to three images that the ledger knows now."""
    from corte_student.endpoints import kind_of
    from corte_student.planning import answered, estimate, probe, survey
    from corte_student.report.progress import Progress

    async with session.open() as opened:
        terms = what.terms(opened.info)
        asker = opened.asker(terms.level)
        with Progress(len(paths), "look") as progress:
            found, fresh = await survey(asker, paths, terms.queries, session.purse, progress.update)
        seen = None if opened.offline else await probe(asker, fresh, terms.queries)
        left = estimate(found, seen, session.in_flight, ramp=kind_of(session.access) != "corte")
        return left, fresh if seen is not None else await answered(asker, paths, terms.queries)


def _step_seconds(session: "Session", what: Wanted, paths: list[Path]) -> float:
    from corte_student.timing import step_seconds

    return step_seconds(session, what.settings, what.classes, paths)


def as_object(found: "Estimate", session: "Session", what: Wanted, step_s: float | None) -> dict[str, object]:
    """The plan as `--json` prints it. Seconds, bytes; `cost` in millionths of `currency`, null without a
    price.
    """
    survey, price = found.survey, session.purse.price
    return {
        "images": survey.images,
        "unreadable": survey.unreadable,
        "duplicates": survey.duplicates,
        "in_ledger": survey.known,
        "requests": survey.questions,
        "asked_now": 0 if found.probe is None else found.probe.asked,
        "bytes_up": survey.bytes_up,
        "bytes_down": found.bytes_down,
        "seconds": round(found.seconds, 2),
        "latency_s": None if found.probe is None else round(found.probe.latency_s, 4),
        "cost": None if price is None else survey.micros,
        "currency": None if price is None else price.currency,
        "disk_bytes": found.disk,
        "train_seconds": None if step_s is None else round(step_s * what.settings.steps, 1),
    }


def _show(found: "Estimate", session: "Session", what: Wanted, step_s: float | None) -> None:
    from rich.console import Console
    from rich.table import Table

    from corte_student.money import show
    from corte_student.report.progress import clock_text

    survey, price, settings = found.survey, session.purse.price, what.settings
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    notes = [f"{survey.known} are in the ledger" if survey.known else ""]
    notes += [f"{survey.duplicates} are duplicates" if survey.duplicates else ""]
    notes += [f"{survey.unreadable} cannot be read" if survey.unreadable else ""]
    table.add_row("images", "; ".join(filter(None, [str(survey.images), *notes])))
    asked = "" if found.probe is None else f", of which {found.probe.asked} were asked just now"
    table.add_row("requests", f"{survey.questions}{asked}")
    table.add_row("transfer", f"{_size(survey.bytes_up)} up, {_size(found.bytes_down)} down")
    if found.probe is not None:
        pace = f"{1000 * found.probe.latency_s:.0f} ms a request, {session.in_flight} in flight"
        table.add_row("asking takes", f"{clock_text(found.seconds)} ({pace})")
    table.add_row(
        "money", "no price known: --price-per-1k" if price is None else show(survey.micros, price.currency)
    )
    table.add_row("disk", _size(found.disk))
    if step_s is not None:
        took = clock_text(step_s * settings.steps)
        table.add_row("training takes", f"{took} ({settings.steps} steps of {step_s:.2f} s, on this machine)")
    Console(file=sys.stdout).print(table)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10**8 else f"{count / 1e6:.2f} MB"
