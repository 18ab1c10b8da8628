"""`corte-student explain`: a picture of how a run came by its targets, for some images."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corte_student.cli.access import (
    DeadlineS,
    InsecureHttp,
    KeyFile,
    LedgerFile,
    Offline,
    TeacherConfigFile,
    TeacherKind,
    TeacherUrl,
    access_of,
    purse_of,
)

if TYPE_CHECKING:  # loaded inside the functions: --help must stay quick
    from PIL.Image import Image

    from corte_student.classmap import ClassMap, Mapped, UInt8
    from corte_student.data.folder import Picture
    from corte_student.session import Session


def explain(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of `train`.")],
    images: Annotated[list[Path], typer.Option("--image", help="An image of the run; repeatable.")],
    out: Annotated[Path, typer.Option("--out", help="The PNG to write.")],
    teacher_url: TeacherUrl = None,
    teacher_kind: TeacherKind = None,
    teacher_config: TeacherConfigFile = None,
    steps: Annotated[
        list[int] | None,
        typer.Option("--step", help="A kept checkpoint; repeatable. By default up to four, spread evenly."),
    ] = None,
    ledger: LedgerFile = None,
    key_file: KeyFile = None,
    insecure_http: InsecureHttp = False,
    deadline: DeadlineS = 120.0,
    offline: Offline = False,
) -> None:
    """Draw the answer, its relative confidence, what is kept, and the targets as they changed in training.

    Targets are shown for every checkpoint that is there: train with --set keep_checkpoints=true.
    """
    from corte_student.checkpoint import kept_steps
    from corte_student.errors import CheckpointError
    from corte_student.session import Session

    there = kept_steps(run)
    chosen = steps or spread(there, 4)
    if not chosen or set(chosen) - set(there):
        raise CheckpointError(
            f"{run} holds checkpoints of the steps {', '.join(map(str, there)) or 'none'}: choose of these"
        )
    access = access_of(teacher_url, teacher_kind, teacher_config, key_file, insecure_http=insecure_http)
    session = Session(access, purse_of(access), ledger, deadline, 1, offline)
    pictures, classmap, answers = asyncio.run(_answers(run, images, session))
    sheet = _drawn(run, chosen, pictures, classmap, answers)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, "PNG", optimize=True)
    typer.echo(f"{out}: {len(images)} images, steps {', '.join(map(str, chosen))}")


def spread(steps: list[int], count: int) -> list[int]:
    """At most `count` of `steps`, evenly spaced, the last one included."""
    if len(steps) <= count:
        return steps
    return [steps[round((i + 1) * len(steps) / count) - 1] for i in range(count)]


async def _answers(
    run: Path, images: list[Path], session: "Session"
) -> tuple[list["Picture"], "ClassMap", list["Mapped"]]:
    from corte_student.data.folder import read_picture
    from corte_student.explain import read_classmap, read_settings
    from corte_student.terms import settle
    from corte_student.training import labeller_of
    from corte_student.views import ask_views

    settings = read_settings(run)
    async with session.open() as opened:
        classmap = read_classmap(run, opened.info)
        labeller = labeller_of(settings, len(classmap.names))
        terms = settle(opened.info, settings, labeller)
        asker = opened.asker(terms.level)
        pictures = [read_picture(path) for path in images]
        answers = [
            await ask_views(
                asker,
                classmap,
                picture,
                terms.queries,
                surrogate=terms.surrogate,
                scores=labeller.wants_scores,
            )
            for picture in pictures
        ]
        return pictures, classmap, answers


def _drawn(
    run: Path,
    steps: list[int],
    pictures: list["Picture"],
    classmap: "ClassMap",
    answers: list["Mapped"],
) -> "Image":
    import numpy as np

    from corte_protocol import VOID
    from corte_student.checkpoint import load_statistics
    from corte_student.explain import read_settings, stage
    from corte_student.report.stages import Column, stages
    from corte_student.training import labeller_of

    settings, statistics = read_settings(run), load_statistics(run)
    # the statistics of a method that tests confidence say nothing of margins
    tests_margin = labeller_of(settings, len(classmap.names)).tests == "margin"
    said = [mapped.labels for mapped in answers]
    columns = [Column("Image", "picture", [p.pixels for p in pictures]), Column("Answer", "labels", said)]
    margins = [mapped.margin for mapped in answers if mapped.margin is not None]
    if tests_margin and len(margins) == len(answers):
        kept = [
            np.where(statistics.keeps(labels, margin), labels, VOID)
            for labels, margin in zip(said, margins, strict=True)
        ]
        columns.append(Column("Relative confidence I", "margin", margins))
        columns.append(
            Column("Kept by R2CP", "labels", [k.astype(np.uint8) for k in kept], [_share(k) for k in kept])
        )
    for step in steps:
        made = [stage(run, step, p.pixels, m) for p, m in zip(pictures, answers, strict=True)]
        captions = [
            f"{_share(one.targets)}, ema agrees on {100 * np.mean(one.labels == labels):.0f} %"
            for one, labels in zip(made, said, strict=True)
        ]
        columns.append(Column(f"Targets at step {step}", "labels", [one.targets for one in made], captions))
    return stages(columns, classmap.names, classmap.colors)


def _share(labels: "UInt8") -> str:
    return f"{100 * float((labels != 255).mean()):.0f} % kept"
