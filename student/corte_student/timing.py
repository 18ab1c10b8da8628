"""How long a training step takes here: the real loop over a few images, offline, thrown away afterwards."""

import asyncio
import os
import tempfile
import time
from pathlib import Path

from corte_student.asking import Tally
from corte_student.session import Session
from corte_student.settings import TrainSettings
from corte_student.training import Job, Observer, train

_STEPS = 5
_TIMED = 2
"""The last of five: threads are warm then, and the ema refines, which the first steps do without."""
_IMAGES = 3


class _Clock(Observer):
    def __init__(self) -> None:
        self.times: list[float] = []

    def stepped(self, step: int, tally: Tally) -> None:
        """Note when."""
        self.times.append(time.monotonic())


def step_seconds(
    session: Session, settings: TrainSettings, classes: Path | None, images: list[Path]
) -> float:
    """Seconds a step, from two timed steps on images that the ledger knows. Raises as `train` does.

    The encoder starts from random weights, whatever the settings say: they take as long and need no download.
    """
    changed = {"steps": _STEPS, "init": "random", "log_every": _STEPS, "checkpoint_every": _STEPS}
    clock = _Clock()
    with tempfile.TemporaryDirectory(prefix="corte-plan-") as name:
        folder = Path(name) / "images"
        folder.mkdir()
        for index, path in enumerate(images[:_IMAGES]):
            os.symlink(path.resolve(), folder / f"{index}{path.suffix}")
        job = Job(
            url=session.access.url,
            images=folder,
            out=Path(name) / "run",
            settings=settings.model_copy(update=changed),
            classes=classes,
            ledger=session.ledger,
            access=session.access,
            purse=session.purse,
            offline=True,
        )
        asyncio.run(train(job, clock))
    return (clock.times[-1] - clock.times[-1 - _TIMED]) / _TIMED
