"""The training loop: takes batches from the stream, one step at a time in a worker thread.

Strategy: asyncio waits, threads compute. A step returns tensors; they become numbers only at the log
interval, because reading one waits for the device. The trainer alone owns backward and the optimiser.
Evaluation never selects: the last checkpoint is the result.
"""

import asyncio
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from corte_student.checkpoint import StudentSpec, TrainState, save_checkpoint
from corte_student.errors import Interrupted, TrainingDiverged
from corte_student.settings import TrainSettings
from corte_student.step import Step, StepReport
from corte_student.stream import Batch


@dataclass(frozen=True, slots=True)
class Interval:
    """What is told at a log interval: numbers over the steps since the last one.

    From `said` on it is what `step.Signals` counts, of the interval's last full step; empty and 0 in a
    shorter last interval.
    """

    step: int
    loss: float
    kept_share: float
    kept_per_class: list[int]
    answered_per_class: list[int]
    rate: float
    said: list[int]
    agreed: list[int]
    ema: list[int]
    confidence: float


class Trainer:
    """Runs a `TrainState` through the batches of a queue and keeps its checkpoints."""

    def __init__(
        self,
        state: TrainState,
        settings: TrainSettings,
        spec: StudentSpec,
        run: Path,
        device: torch.device,
        told: Callable[[Interval], None],
        stepped: Callable[[int], None],
    ) -> None:
        self.state, self._settings, self._spec = state, settings, spec
        self._step = Step(state, settings, device)
        self._run, self._told, self._stepped = run, told, stepped
        self._stop: int | None = None
        self._stopped = asyncio.Event()
        self._since: list[StepReport] = []

    def stop(self, signal_number: int) -> None:
        """Ask the loop to finish its step, save and raise Interrupted."""
        self._stop = signal_number
        self._stopped.set()

    async def run(self, queue: "asyncio.Queue[Batch | None]") -> None:
        """Train until the queue gives None; saves at the end. Raises TrainingDiverged or Interrupted."""
        # one thread for all steps: malloc keeps an arena, and OpenMP a team, for every thread that computes
        # (CamVid, lite0: 2.3 GB resident, against 4.7 when steps wandered over a pool)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="train") as thread:
            await self._steps(queue, thread)
        if self._stop is not None and self.state.step < self._settings.steps:
            raise Interrupted(self._stop)

    async def _steps(self, queue: "asyncio.Queue[Batch | None]", thread: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        while (batch := await self._next(queue)) is not None:
            self._since.append(await loop.run_in_executor(thread, self._step, batch))
            done = self.state.step
            self._stepped(done)
            if done % self._settings.log_every == 0 or done == self._settings.steps:
                self._tell()
            if done % self._settings.checkpoint_every == 0 and done < self._settings.steps:
                await loop.run_in_executor(thread, self._save)
        await loop.run_in_executor(thread, self._save)

    async def _next(self, queue: "asyncio.Queue[Batch | None]") -> Batch | None:
        """The next batch, or None at the end or as soon as a stop is asked for."""
        arrival = asyncio.ensure_future(queue.get())
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait({arrival, stopped}, return_when=asyncio.FIRST_COMPLETED)
            return None if self._stopped.is_set() else arrival.result()
        finally:
            arrival.cancel()
            stopped.cancel()

    def _tell(self) -> None:
        reports, self._since = self._since, []
        loss = float(torch.stack([r.loss for r in reports]).mean())
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"the loss is {loss} at step {self.state.step}: start again with "
                f"--set lr={self._settings.lr / 3:.1e}; the last checkpoint is intact"
            )
        kept = torch.stack([r.kept for r in reports]).sum(dim=0).tolist()
        answered = torch.stack([r.answered for r in reports]).sum(dim=0).tolist()
        share = sum(kept) / max(1, sum(answered))
        seen = reports[-1].signals
        self._told(
            Interval(
                self.state.step,
                loss,
                share,
                kept,
                answered,
                reports[-1].rate,
                [] if seen is None else seen.said.tolist(),
                [] if seen is None else seen.agreed.tolist(),
                [] if seen is None else seen.ema.tolist(),
                0.0 if seen is None else float(seen.confidence),
            )
        )

    def _save(self) -> None:
        if self._since:
            self._check_finite()
        save_checkpoint(self._run, self.state, self._spec, keep_all=self._settings.keep_checkpoints)

    def _check_finite(self) -> None:
        if not torch.isfinite(self._since[-1].loss):
            raise TrainingDiverged(
                f"the loss is not a number at step {self.state.step}; the last checkpoint is intact"
            )
