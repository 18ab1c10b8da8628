"""`corte-student evaluate`: per-class IoU of a student, or of the black box itself, on labelled images."""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corte_student.cli.access import (
    Budget,
    DeadlineS,
    InsecureHttp,
    KeyFile,
    LedgerFile,
    MaxRequests,
    Offline,
    PricePer1k,
    TeacherConfigFile,
    TeacherKind,
    TeacherUrl,
    access_of,
    purse_of,
)
from corte_student.errors import SettingsError

if TYPE_CHECKING:  # loaded inside the functions: --help must stay quick
    from corte_protocol import Disclosure, TeacherInfo
    from corte_student.metrics import ConfusionMatrix
    from corte_student.session import Session

Pairs = Sequence[tuple[Path, Path]]


def evaluate(
    images: Annotated[Path, typer.Option("--images", help="Folder of images, searched recursively.")],
    labels: Annotated[Path, typer.Option("--labels", help="Folder of label PNGs at the same paths.")],
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="Run folder of `train`; or give --teacher-url.")
    ] = None,
    layout: Annotated[
        str,
        typer.Option(
            "--layout",
            help="How labels are stored: plain, camvid, camvid-fastai, cityscapes, gta5, synthia, acdc, "
            "bdd100k, idd or kitti.",
        ),
    ] = "plain",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    teacher_url: TeacherUrl = None,
    teacher_kind: TeacherKind = None,
    teacher_config: TeacherConfigFile = None,
    classes: Annotated[
        Path | None, typer.Option("--classes", help="Class map (TOML) from the teacher's classes to yours.")
    ] = None,
    disclosure: Annotated[
        str | None,
        typer.Option("--disclosure", help="Level to ask for; by default all that the teacher offers."),
    ] = None,
    ledger: LedgerFile = None,
    key_file: KeyFile = None,
    insecure_http: InsecureHttp = False,
    deadline: DeadlineS = 120.0,
    price_per_1k: PricePer1k = None,
    budget: Budget = None,
    max_requests: MaxRequests = None,
    offline: Offline = False,
    in_flight: Annotated[int, typer.Option("--in-flight", min=1, help="Requests under way at once.")] = 4,
) -> None:
    """Score a student, or with --teacher-url the black box itself, against labels."""
    if (run is None) == (teacher_url is None and teacher_config is None):
        raise SettingsError("give either a RUN folder or --teacher-url, whichever is to be scored")
    from corte_student.data.layouts import pair

    pairs = pair(images, labels, layout)
    if run is not None:
        names, matrix = _score_student(run, pairs, layout)
    else:
        from corte_student.session import Session

        access = access_of(teacher_url, teacher_kind, teacher_config, key_file, insecure_http=insecure_http)
        purse = purse_of(access, price_per_1k, budget, max_requests)
        session = Session(access, purse, ledger, deadline, in_flight, offline)
        names, matrix = asyncio.run(_score_teacher(session, classes, disclosure, pairs, layout))
        teacher_url = access.url
    if as_json:
        typer.echo(json.dumps(as_object(names, matrix)))
    else:
        _show(str(run or teacher_url), names, matrix, len(pairs))


def as_object(names: Sequence[str], matrix: "ConfusionMatrix") -> dict[str, object]:
    """The scores as `--json` prints them: all between 0 and 1, null for a class absent from the truth.

    For Cityscapes' 19 classes also the means of `metrics.CLASS_LISTS`, each with how many of its classes
    occur, and the rule for those that do not.
    """
    from corte_student.metrics import ABSENT_RULE, class_lists

    iou = matrix.iou()
    scores: dict[str, object] = {
        "miou": matrix.miou,
        "pixel_accuracy": matrix.pixel_accuracy,
        "classes": [{"name": name, "iou": value} for name, value in zip(names, iou, strict=True)],
    }
    if lists := class_lists(names):
        scores["means"] = {
            title: {
                "value": matrix.mean_iou(chosen),
                "present": sum(iou[c] is not None for c in chosen),
                "of": len(chosen),
            }
            for title, chosen in lists.items()
        }
        scores["absent_rule"] = ABSENT_RULE
    return scores


def _score_student(run: Path, pairs: Pairs, layout: str) -> tuple[Sequence[str], "ConfusionMatrix"]:
    from corte_student.checkpoint import load_student
    from corte_student.data.layouts import check_classes
    from corte_student.evaluate import score, student_predicts
    from corte_student.report.progress import Progress

    student, spec = load_student(run)
    check_classes(layout, spec.classes)
    with Progress(len(pairs), "evaluate") as progress:
        matrix = asyncio.run(
            score(
                student_predicts(student),
                pairs,
                layout=layout,
                classes=len(spec.classes),
                on_image=progress.update,
            )
        )
    return spec.classes, matrix


async def _score_teacher(
    session: "Session", classes: Path | None, disclosure: str | None, pairs: Pairs, layout: str
) -> tuple[Sequence[str], "ConfusionMatrix"]:
    from corte_student.classmap import ClassMap, load_classmap
    from corte_student.data.layouts import check_classes
    from corte_student.evaluate import score, teacher_predicts
    from corte_student.report.progress import Progress

    async with session.open() as opened:
        info = opened.info
        classmap = ClassMap.identity(info) if classes is None else load_classmap(classes, info)
        check_classes(layout, classmap.names)
        asker = opened.asker(_level(disclosure, info))
        with Progress(len(pairs), "evaluate") as progress:
            matrix = await score(
                teacher_predicts(asker, classmap),
                pairs,
                layout=layout,
                classes=len(classmap.names),
                in_flight=session.in_flight,
                on_image=lambda done: progress.update(done, sent=asker.tally.sent, saved=asker.tally.saved),
            )
    return classmap.names, matrix


def _level(text: str | None, info: "TeacherInfo") -> "Disclosure":
    from corte_protocol import Disclosure, InvalidValue

    if text is None:
        return info.disclosure
    try:
        return Disclosure.parse(text, len(info.classes))
    except InvalidValue as exc:
        raise SettingsError(f"--disclosure: {exc}") from exc


def _show(subject: str, names: Sequence[str], matrix: "ConfusionMatrix", images: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from corte_student.metrics import ABSENT_RULE, class_lists

    iou = matrix.iou()
    table = Table()
    table.add_column("class")
    table.add_column("IoU %", justify="right")
    for name, value in zip(names, iou, strict=True):
        table.add_row(Text(name), Text("absent", style="dim") if value is None else f"{100 * value:.1f}")
    present = sum(value is not None for value in iou)
    table.add_section()
    table.add_row("mean (mIoU)", f"{100 * matrix.miou:.1f}", style="bold")
    lists = {title: chosen for title, chosen in class_lists(names).items() if len(chosen) < len(names)}
    for title, chosen in lists.items():
        mean, there = matrix.mean_iou(chosen), sum(iou[c] is not None for c in chosen)
        shown = "absent" if mean is None else f"{100 * mean:.1f}"
        table.add_row(f"{title}, {there} of {len(chosen)} classes", shown)
    table.add_row("pixel accuracy", f"{100 * matrix.pixel_accuracy:.1f}")
    console = Console(file=sys.stdout)
    counted = "1 image" if images == 1 else f"{images} images"
    console.print(Text(f"{subject} on {counted}", style="bold"), soft_wrap=True)
    console.print(table)
    rule = f"mean over {present} of {len(names)} classes: those that occur in the truth"
    told = rule if present == len(names) and not lists else f"{rule}; {ABSENT_RULE}"
    if lists:
        told += f"; {' and '.join(lists)} are means over rows of the same matrix of {len(names)} classes"
    console.print(Text(told), soft_wrap=True)
