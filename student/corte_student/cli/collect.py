"""`corte-student collect`: ask all that a run will ask, now; `train --offline` needs no network then."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from corte_student.cli.access import (
    Budget,
    InsecureHttp,
    KeyFile,
    LedgerFile,
    MaxRequests,
    PricePer1k,
    TeacherConfigFile,
    TeacherKind,
    TeacherUrl,
    access_of,
    purse_of,
)
from corte_student.cli.asking import ClassesFile, Images, Method, Recipes, Sets, Wanted, wanted

if TYPE_CHECKING:  # loaded inside the functions: --help must stay quick
    from corte_protocol import TeacherInfo
    from corte_student.asking import Asker
    from corte_student.classmap import ClassMap
    from corte_student.collecting import Collected
    from corte_student.session import Session


def collect(
    images: Images,
    teacher_url: TeacherUrl = None,
    teacher_kind: TeacherKind = None,
    teacher_config: TeacherConfigFile = None,
    recipe: Recipes = None,
    set_: Sets = None,
    classes: ClassesFile = None,
    method: Method = None,
    ledger: LedgerFile = None,
    price_per_1k: PricePer1k = None,
    budget: Budget = None,
    max_requests: MaxRequests = None,
    key_file: KeyFile = None,
    insecure_http: InsecureHttp = False,
) -> None:
    """Ask the teacher about every image, keep the answers, train nothing. A second run sends nothing."""
    from corte_student.data.folder import find_images
    from corte_student.session import Session

    what = wanted(recipe, set_, classes, {"method": method})
    access = access_of(teacher_url, teacher_kind, teacher_config, key_file, insecure_http=insecure_http)
    purse = purse_of(access, price_per_1k, budget, max_requests, what.price)
    paths = find_images(images)
    settings = what.settings
    session = Session(access, purse, ledger, settings.deadline_s, settings.in_flight)
    asyncio.run(_collect(session, what, images, paths))


async def _collect(session: "Session", what: Wanted, root: Path, paths: list[Path]) -> None:
    from corte_student.collecting import collect as run
    from corte_student.report.progress import Progress

    async with session.open() as opened:
        classmap, terms = what.classmap(opened.info), what.terms(opened.info)
        _began(opened.info, offline=opened.offline, cost=terms.cost(len(paths)))
        asker = opened.asker(terms.level)
        found = None
        try:
            with Progress(len(paths), "collect") as progress:

                def told(collected: "Collected") -> None:
                    nonlocal found
                    found = collected
                    progress.update(collected.done, **_facts(asker, session, collected))

                await run(asker, classmap, root, paths, terms.queries, in_flight=session.in_flight, told=told)
        finally:
            _ended(asker, session, classmap, found)


def _began(info: "TeacherInfo", *, offline: bool, cost: str) -> None:
    where = "offline: answers from the ledger only" if offline else f"discloses {info.disclosure}"
    typer.echo(f"teacher {info.teacher}, revision {info.revision}, {where}", err=True)
    typer.echo(cost, err=True)


def _facts(asker: "Asker", session: "Session", found: "Collected") -> dict[str, object]:
    from corte_student.money import show

    tally = asker.tally
    facts: dict[str, object] = {"sent": tally.sent, "saved": tally.saved}
    if session.purse.price is not None:
        facts["cost"] = show(tally.spent, session.purse.price.currency)
    if found.aside:
        facts["aside"] = len(found.aside)
    return facts


def _ended(asker: "Asker", session: "Session", classmap: "ClassMap", found: "Collected | None") -> None:
    """How far it came and what it cost, however it ended: whoever pays wants to know."""
    from corte_student.money import show

    tally = asker.tally
    price = session.purse.price
    spent = "" if price is None else f", spent {show(tally.spent, price.currency)}"
    typer.echo(
        f"collected: {found.done if found else 0} images; requests sent {tally.sent}, "
        f"served by the ledger {tally.saved}, {tally.bytes_up / 1e6:.1f} MB up, "
        f"{tally.bytes_down / 1e6:.1f} MB down{spent}",
        err=True,
    )
    if found is None:
        return
    for name, why in found.aside.items():
        typer.echo(f"set aside: {name}: {why}", err=True)
    if total := int(found.areas.sum()):
        shares = zip((*classmap.names, "(void)"), found.areas.tolist(), strict=True)
        told = ", ".join(f"{name} {100 * area / total:.1f} %" for name, area in shares if area)
        typer.echo(f"answers: {told}", err=True)
        if never := [n for n, area in zip(classmap.names, found.areas.tolist(), strict=False) if not area]:
            typer.echo(f"never answered: {', '.join(never)}", err=True)
