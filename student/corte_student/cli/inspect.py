"""`corte-student inspect`: what a teacher offers, before anything is asked of it."""

import asyncio
import json
import sys
from typing import Annotated

import typer

from corte_protocol import Disclosure, TeacherInfo
from corte_student.cli.access import DeadlineS, InsecureHttp, KeyFile, TeacherUrl, reached
from corte_student.cli.keys import read_key

# the `needs` of corte_student.pseudo_labels, which loads torch; a test keeps the two alike
_METHODS = {
    "naive": Disclosure(1, 0),
    "threshold": Disclosure(1, 8),
    "soft": Disclosure(1, 8),
    "corte": Disclosure(1, 8),
}


def inspect(
    teacher_url: TeacherUrl,
    key_file: KeyFile = None,
    insecure_http: InsecureHttp = False,
    deadline: DeadlineS = 20.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Show what the teacher at a URL offers: classes, disclosure, limits."""
    info = asyncio.run(_ask(teacher_url, key_file, insecure_http, deadline))
    if as_json:
        from corte_protocol import encode_info

        data = json.loads(encode_info(info))
        typer.echo(json.dumps(data | {"methods": possible_methods(info)}))
    else:
        _show(info)


def possible_methods(info: TeacherInfo) -> list[str]:
    """The values of `train --method` for which the teacher discloses enough."""
    return [name for name, needs in _METHODS.items() if info.disclosure.allows(needs)]


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


async def _ask(url: str, key_file: KeyFile, insecure_http: bool, deadline_s: float) -> TeacherInfo:
    key = read_key(key_file)
    async with reached(
        url, key, insecure_http=insecure_http, deadline_s=deadline_s, connections=1
    ) as endpoint:
        return await endpoint.info()


def _show(info: TeacherInfo) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    possible = possible_methods(info)
    missing = [name for name in _METHODS if name not in possible]
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    facts.add_row("teacher", info.teacher)
    facts.add_row("revision", info.revision)
    facts.add_row("disclosure", f"{info.disclosure}: {_meaning(info)}")
    facts.add_row("methods", ", ".join(possible))
    if missing:
        needs = ", ".join(f"{name} ({_METHODS[name]})" for name in missing)
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
