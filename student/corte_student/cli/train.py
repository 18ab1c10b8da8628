"""`corte-student train`: flags in, one run out. torch is imported once the flags are known to be good."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from corte_student.cli.keys import read_key

URL = Annotated[str, typer.Option(help="Where the teacher answers, for example http://127.0.0.1:8000")]
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
LEDGER = Annotated[Path | None, typer.Option(help="Where answers are kept; default: one per user")]
RESUME = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out")]
KEY_FILE = Annotated[Path | None, typer.Option(help="File that holds the key; else CORTE_TEACHER_KEY")]
INSECURE = Annotated[bool, typer.Option("--insecure-http", help="Send the key unencrypted")]


def train(
    teacher_url: URL,
    images: IMAGES,
    out: OUT,
    recipe: RECIPE = None,
    set_: SET = None,
    classes: CLASSES = None,
    encoder: ENCODER = None,
    weights: WEIGHTS = None,
    steps: STEPS = None,
    seed: SEED = None,
    method: METHOD = None,
    ledger: LEDGER = None,
    resume: RESUME = False,
    key_file: KEY_FILE = None,
    insecure_http: INSECURE = False,
) -> None:
    """Train a lightweight student from the teacher's predictions on your images."""
    from corte_student.settings import encoder_of, find_recipe, load_settings, read_toml

    if weights is not None and encoder is None:
        encoder = encoder_of(weights)
    flags: dict[str, Any] = {"encoder": encoder, "steps": steps, "seed": seed, "method": method}
    recipes = [find_recipe(name) for name in recipe or []]
    settings = load_settings(recipes, flags, set_ or [])
    if classes is None:
        classes = next((path for path in reversed(recipes) if "classes" in read_toml(path)), None)
    key = read_key(key_file)  # a missing key file is told before seconds go into importing torch

    from corte_student.cli.telling import Told
    from corte_student.training import Job
    from corte_student.training import train as run

    job = Job(
        url=teacher_url,
        images=images,
        out=out,
        settings=settings,
        classes=classes,
        weights=weights,
        ledger=ledger,
        key=key,
        insecure_http=insecure_http,
        resume=resume,
    )
    with Told(settings) as told:
        summary = asyncio.run(run(job, told))
    told.finish(summary, out)
