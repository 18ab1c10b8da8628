"""The last signals of a run, and how far they moved since refinement began: what `inspect RUN` shows.

Legend: every value is a share, 0..1 (kept may exceed 1, where the ema adds pixels of a class); a drift is the
last value less the earlier one.
"""

from collections.abc import Callable
from dataclasses import dataclass

from corte_student.report.recorded import Recorded
from corte_student.report.signals import WARM_UP, RunWarning, Window, before, windows


@dataclass(frozen=True, slots=True)
class Value:
    """A signal now and its drift; None where nothing was counted, then or now."""

    now: float | None
    drift: float | None


@dataclass(frozen=True, slots=True)
class ClassSignals:
    """One class. `answers` and `ema` are its shares of the pixels of the logged batches."""

    name: str
    answers: Value
    ema: Value
    kept: Value
    agreement: Value


@dataclass(frozen=True, slots=True)
class Overview:
    """A run's signals over the intervals that end at `step`; drifts are from those that end at `since`.

    `refines_at` is where refinement begins; for a run without, drifts are from the end of its warm-up.
    """

    step: int
    steps: int
    since: int
    refines_at: int | None
    kept: Value
    agreement: Value
    confidence: Value
    classes: tuple[ClassSignals, ...]
    standing: tuple[RunWarning, ...]


def overview(run: Recorded) -> Overview | None:
    """The signals of a run; None where fewer than `signals.WINDOW` intervals have any."""
    found = windows(run.intervals)
    start = run.refines_at if run.refines_at is not None else round(WARM_UP * run.steps)
    then = before(found, start)
    if then is None:
        return None
    now = found[-1]

    def value(of: Callable[[Window], float | None]) -> Value:
        last, first = of(now), of(then)
        return Value(last, None if last is None or first is None else last - first)

    def signals_of(c: int, name: str) -> ClassSignals:
        return ClassSignals(
            name,
            value(lambda w: w.said_share(c)),
            value(lambda w: w.ema_share(c)),
            value(lambda w: w.kept_of(c)),
            value(lambda w: w.agreement_of(c)),
        )

    return Overview(
        now.step,
        run.steps,
        then.step,
        run.refines_at,
        value(lambda w: w.kept_share),
        value(lambda w: w.agreement),
        value(lambda w: w.confidence),
        tuple(signals_of(c, name) for c, name in enumerate(run.names)),
        tuple(run.monitor().standing()),
    )
