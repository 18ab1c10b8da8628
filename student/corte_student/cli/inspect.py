"""`corte-student inspect`: what a teacher offers before anything is asked; how a run goes, without labels."""

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corte_protocol import TeacherInfo
from corte_student.cli.access import (
    DeadlineS,
    InsecureHttp,
    KeyFile,
    TeacherConfigFile,
    TeacherKind,
    TeacherUrl,
    access_of,
)
from corte_student.errors import DataError, SettingsError
from corte_student.methods import NEEDS

if TYPE_CHECKING:  # loaded inside the functions: --help must stay quick
    from corte_student.endpoints import Access
    from corte_student.report.overview import Overview, Value
    from corte_student.report.recorded import Recorded


def inspect(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="Run folder of `train`; or give --teacher-url.")
    ] = None,
    teacher_url: TeacherUrl = None,
    teacher_kind: TeacherKind = None,
    teacher_config: TeacherConfigFile = None,
    key_file: KeyFile = None,
    insecure_http: InsecureHttp = False,
    deadline: DeadlineS = 20.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Draw a RUN's signals over its steps to this PNG file.")
    ] = None,
) -> None:
    """Show what the teacher at a URL offers; or how a RUN goes, in signals that need no labels."""
    if (run is None) == (teacher_url is None and teacher_config is None):
        raise SettingsError("give either a RUN folder or --teacher-url, whichever is to be inspected")
    if run is not None:
        _inspect_run(run, picture, as_json=as_json)
        return
    if picture is not None:
        raise SettingsError("--picture draws a RUN: give its folder in place of --teacher-url")
    access = access_of(teacher_url, teacher_kind, teacher_config, key_file, insecure_http=insecure_http)
    info = asyncio.run(_ask(access, deadline))
    if as_json:
        from corte_protocol import encode_info

        data = json.loads(encode_info(info))
        typer.echo(json.dumps(data | {"methods": possible_methods(info)}))
    else:
        _show(info)


def possible_methods(info: TeacherInfo) -> list[str]:
    """The values of `train --method` for which the teacher discloses enough."""
    return [name for name, known in NEEDS.items() if info.disclosure.allows(known.needs)]


def _meaning(info: TeacherInfo) -> str:
    held = info.disclosure
    if held.prob_bits == 0:
        return "the best class of each pixel, no score"
    scores = "scores in 1/255" if held.prob_bits == 8 else "16-bit scores"
    if held.top_k == 1:
        return f"the best class of each pixel with its score ({scores})"
    if held.top_k == len(info.classes):
        return f"all {held.top_k} classes of each pixel with {scores}"
    return f"the {held.top_k} best classes of each pixel with {scores}"


async def _ask(access: "Access", deadline_s: float) -> TeacherInfo:
    from corte_student.endpoints import connect

    endpoint = connect(access, deadline_s=deadline_s, connections=1)
    try:
        return await endpoint.info()
    finally:
        await endpoint.aclose()


def _show(info: TeacherInfo) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    possible = possible_methods(info)
    missing = [name for name in NEEDS if name not in possible]
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    facts.add_row("teacher", info.teacher)
    facts.add_row("revision", info.revision)
    facts.add_row("disclosure", f"{info.disclosure}: {_meaning(info)}")
    facts.add_row("methods", ", ".join(possible))
    if missing:
        needs = ", ".join(f"{name} ({NEEDS[name].needs})" for name in missing)
        facts.add_row("", f"needs more than it discloses: {needs}")
    facts.add_row("one image", f"up to {info.limits.max_body_bytes / 1e6:.1f} MB")
    facts.add_row("", f"up to {info.limits.max_pixels / 1e6:.1f} million pixels")
    facts.add_row("classes", str(len(info.classes)))
    classes = Table(box=None, padding=(0, 1), show_header=False)
    classes.add_column(justify="right", style="dim")
    for _ in range(3):
        classes.add_column(no_wrap=True)
    for index, (name, color) in enumerate(zip(info.classes, info.colors, strict=True)):
        red, green, blue = color
        swatch = Text("██", style=f"rgb({red},{green},{blue})")
        classes.add_row(str(index), swatch, Text(name), Text(f"#{red:02x}{green:02x}{blue:02x}", style="dim"))
    console = Console(file=sys.stdout)
    console.print(facts)
    console.print(classes)


def _inspect_run(run: Path, picture: Path | None, *, as_json: bool) -> None:
    from dataclasses import asdict

    from corte_student.report.overview import overview
    from corte_student.report.recorded import Recorded
    from corte_student.report.signals import WINDOW

    recorded = Recorded.read(run)
    found = overview(recorded)
    if found is None:
        raise DataError(
            f"{run} has logged signals of fewer than {WINDOW} intervals: wait for more of them, or log more "
            "often with --set log_every=N"
        )
    if as_json:
        typer.echo(json.dumps(asdict(found)))
    else:
        _show_run(run, found)
    if picture is not None:
        _draw(run, recorded, picture)
        typer.echo(f"curves in {picture}", err=True)


def _draw(run: Path, recorded: "Recorded", picture: Path) -> None:
    from corte_student.checkpoint import load_student  # loads torch: only the checkpoint knows the colours
    from corte_student.report.curves import save_curves

    _, spec = load_student(run)
    try:
        save_curves(picture, recorded, spec.colors)
    except OSError as exc:
        raise DataError(f"cannot write {picture}: {exc.strerror or exc}") from exc


def _show_run(run: Path, found: "Overview") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from corte_student.report.signals import WINDOW

    table = Table(box=None, padding=(0, 1))
    table.add_column("class")
    for column in ("answers %", "ema %", "", "kept %", "", "agree %", ""):
        table.add_column(column, justify="right", no_wrap=True)
    for one in found.classes:
        table.add_row(
            Text(one.name), _now(one.answers), *_both(one.ema), *_both(one.kept), *_both(one.agreement)
        )
    table.add_section()
    table.add_row("all", "", "", "", *_both(found.kept), *_both(found.agreement), style="bold")
    console = Console(file=sys.stdout)
    title = f"{run}: step {found.step} of {found.steps}, mean of {WINDOW} intervals"
    console.print(Text(title, style="bold"), soft_wrap=True)
    console.print(table)
    console.print(Text("confidence of the ema: {} % {}".format(*_both(found.confidence))), soft_wrap=True)
    began = (
        "the end of the warm-up"
        if found.refines_at is None
        else f"refinement began (step {found.refines_at})"
    )
    told = f"+ and -: points since step {found.since}, before {began}"
    if found.refines_at is not None and found.step < found.refines_at:
        told = f"+ and -: points since step {found.since}; refinement begins at step {found.refines_at}"
    console.print(Text(told, style="dim"), soft_wrap=True)
    for warning in found.standing:
        line = f"warning since step {warning.step}: {warning.message}"
        console.print(Text(line, style="yellow"), soft_wrap=True)
    if not found.standing:
        console.print(Text("no warning stands"))


def _both(value: "Value") -> tuple[str, str]:
    return _now(value), "" if value.drift is None else f"{100 * value.drift:+.1f}"


def _now(value: "Value") -> str:
    return "none" if value.now is None else f"{100 * value.now:.1f}"
