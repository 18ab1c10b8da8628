"""`corte-student train`: flags in, one run out. torch is imported once the flags are known to be good."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from corte_student.cli.access import (
    Budget,
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
from corte_student.cli.asking import wanted

IMAGES = Annotated[Path, typer.Option(help="Folder of unlabelled target images, read recursively")]
OUT = Annotated[Path, typer.Option(help="Run folder: settings, log and checkpoints")]
RECIPE = Annotated[
    list[str] | None,
    typer.Option(help="TOML file of settings, or corte, corte-plus; repeatable, later ones win"),
]
SET = Annotated[list[str] | None, typer.Option("--set", help="One setting as key=value; repeatable")]
CLASSES = Annotated[Path | None, typer.Option(help="TOML class map: teacher classes to yours")]
ENCODER = Annotated[str | None, typer.Option(help="timm name of the student's encoder")]
WEIGHTS = Annotated[Path | None, typer.Option(help="Folder of the encoder's config.json, model.safetensors")]
STEPS = Annotated[int | None, typer.Option(help="Training steps")]
SEED = Annotated[int | None, typer.Option(help="Decides weights, order and views")]
METHOD = Annotated[
    str | None,
    typer.Option(
        help="corte, naive, threshold, class-mean, random, soft, distil, dine, or package.module:factory"
    ),
]
RESUME = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out")]


def train(
    images: IMAGES,
    out: OUT,
    teacher_url: TeacherUrl = None,
    teacher_kind: TeacherKind = None,
    teacher_config: TeacherConfigFile = None,
    recipe: RECIPE = None,
    set_: SET = None,
    classes: CLASSES = None,
    encoder: ENCODER = None,
    weights: WEIGHTS = None,
    steps: STEPS = None,
    seed: SEED = None,
    method: METHOD = None,
    ledger: LedgerFile = None,
    resume: RESUME = False,
    offline: Offline = False,
    price_per_1k: PricePer1k = None,
    budget: Budget = None,
    max_requests: MaxRequests = None,
    key_file: KeyFile = None,
    insecure_http: InsecureHttp = False,
) -> None:
    """Train a lightweight student from the teacher's predictions on your images."""
    if weights is not None and encoder is None:
        from corte_student.settings import encoder_of

        encoder = encoder_of(weights)
    flags: dict[str, Any] = {"encoder": encoder, "steps": steps, "seed": seed, "method": method}
    what = wanted(recipe, set_, classes, flags)
    # a missing key file is told before seconds go into importing torch
    access = access_of(teacher_url, teacher_kind, teacher_config, key_file, insecure_http=insecure_http)
    purse = purse_of(access, price_per_1k, budget, max_requests, what.price)

    from corte_student.cli.telling import Told
    from corte_student.training import Job
    from corte_student.training import train as run

    job = Job(
        url=access.url,
        images=images,
        out=out,
        settings=what.settings,
        classes=what.classes,
        weights=weights,
        ledger=ledger,
        resume=resume,
        access=access,
        purse=purse,
        offline=offline,
    )
    with Told(what.settings, purse) as told:
        summary = asyncio.run(run(job, told))
    told.finish(summary, out)
