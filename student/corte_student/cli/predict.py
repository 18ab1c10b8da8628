"""`corte-student predict`: label PNGs and overlays of a folder of images."""

from pathlib import Path
from typing import Annotated

import typer

from corte_student.errors import DataError


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of `train`.")],
    images: Annotated[Path, typer.Option("--images", help="Folder of images, searched recursively.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; labels/ and overlays/ inside.")],
) -> None:
    """Write the student's labels and overlays, each of its image's exact size."""
    from corte_student.predict import plan_outputs, predict_folder

    jobs = plan_outputs(images, out)  # before torch is loaded, so that a wrong folder is told at once
    from corte_student.checkpoint import load_student
    from corte_student.report.progress import Progress

    student, spec = load_student(run)
    with Progress(len(jobs), "predict") as progress:
        unread = predict_folder(student, spec.colors, jobs, on_image=progress.update)
    typer.echo(
        f"{len(jobs) - len(unread)} images: labels in {out / 'labels'}, overlays in {out / 'overlays'}"
    )
    if unread:
        first = next(iter(unread.values()))
        raise DataError(f"{len(unread)} of {len(jobs)} images were left out, the first: {first}")
