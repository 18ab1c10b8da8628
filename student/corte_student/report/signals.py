"""What a run shows without labels, and when that is a reason to worry.

Strategy: the pixels of one logged batch belong to a handful of crops, so nothing is read from one batch.
Counts of the last `WINDOW` intervals are added up, and a class is judged only where the answers hold enough
of it. Every warning has two thresholds, one to be told and a better one to be taken back, so that a value on
the border is told once. Warnings follow from integers that the log holds too: replaying it gives them again.

    interval, interval, ... -> Window -> Monitor -> RunWarning

The thresholds are this project's choices; docs/signals.md says what the numbers can and cannot tell.
"""

import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

WINDOW = 5
"""Intervals that are added up: 40 crops at a batch of 8 take the noise of agreement from 2.5 points to 1."""
WARM_UP = 0.2
"""Share of the run before which nothing is warned about: from random weights, signs first appear at 0.16."""
LEAST_SHARE = 0.002
"""Share of the answers below which a class is not judged: street signs have 0.4 %, CamVid's riders 0.3 %."""
LEAST_PIXELS = 400
"""Pixels of a class that a window must hold: a few objects on the sampled grid."""
VANISHED, BACK = 0.05, 0.15
"""The ema's pixels of a class over the answers': below the first it is gone. Healthy ones have 0.6 to 5."""
KNOWN = 0.1
"""IoU of ema and answers that says a class was once learned; chance hits of a random decoder reach 0.02."""
STARVED, FED = 0.02, 0.05
"""Kept over answered pixels of a class. A threshold at the class's mean keeps a third or more."""
FALL = 0.1
"""Fall of a window's agreement from its best. Eight healthy runs, street scenes and CamVid: at most 0.02."""
NOISES = 8.0
"""Where batches are small a fall must also be this many standard errors: the best of many windows is
held against the worst, and batches are no normal draws. At 6, 1 healthy run of 100 simulated was accused, at
8 none of 4000."""

_TOTAL = -1  # stands where a class would, for what is judged as a whole
_NAMED = 6  # classes named in one message


class Seen(Protocol):
    """One log interval; counts are of pixels by class, [S], over the interval or of its last step.

    `kept_per_class` (targets) and `answered_per_class` over all steps of the interval; `said` (answers),
    `agreed` (of those, the ema says the same) and `ema` of its last step, empty where none was looked at.
    `confidence` is the ema's mean best probability there, 0..1.
    """

    @property
    def step(self) -> int: ...
    @property
    def kept_per_class(self) -> Sequence[int]: ...
    @property
    def answered_per_class(self) -> Sequence[int]: ...
    @property
    def said(self) -> Sequence[int]: ...
    @property
    def agreed(self) -> Sequence[int]: ...
    @property
    def ema(self) -> Sequence[int]: ...
    @property
    def confidence(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Logged:
    """An interval read back from the log; see `Seen`."""

    step: int
    kept_per_class: Sequence[int]
    answered_per_class: Sequence[int]
    said: Sequence[int]
    agreed: Sequence[int]
    ema: Sequence[int]
    confidence: float

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Logged":
        """One line of RUN/log.jsonl; without signals where an older version wrote it."""
        return cls(
            record["step"],
            record["kept_per_class"],
            record["answered_per_class"],
            record.get("said_per_class", []),
            record.get("agreed_per_class", []),
            record.get("ema_per_class", []),
            record.get("ema_confidence", 0.0),
        )


@dataclass(frozen=True, slots=True)
class Window:
    """Counts of consecutive intervals added up, each [S]; `first` and `step` are its first and last step."""

    first: int
    step: int
    kept: Sequence[int]
    answered: Sequence[int]
    said: Sequence[int]
    agreed: Sequence[int]
    ema: Sequence[int]
    confidence: float

    @classmethod
    def over(cls, intervals: Sequence[Seen]) -> "Window":
        """The sum of intervals that all have signals; confidence is their mean."""
        return cls(
            intervals[0].step,
            intervals[-1].step,
            _sums([i.kept_per_class for i in intervals]),
            _sums([i.answered_per_class for i in intervals]),
            _sums([i.said for i in intervals]),
            _sums([i.agreed for i in intervals]),
            _sums([i.ema for i in intervals]),
            sum(i.confidence for i in intervals) / len(intervals),
        )

    @property
    def agreement(self) -> float:
        """Share of the answered pixels on which the ema says the same, 0..1."""
        return sum(self.agreed) / max(1, sum(self.said))

    @property
    def kept_share(self) -> float:
        """Pixels learned from over pixels answered."""
        return sum(self.kept) / max(1, sum(self.answered))

    def agreement_of(self, c: int) -> float | None:
        """Share of the pixels answered `c` on which the ema says the same; None where there is none."""
        return self.agreed[c] / self.said[c] if self.said[c] else None

    def kept_of(self, c: int) -> float | None:
        """Targets of class `c` over answers of it, above 1 where the ema adds some; None where no answer."""
        return self.kept[c] / self.answered[c] if self.answered[c] else None

    def answers_share(self, c: int) -> float:
        """Share of class `c` among the answers, 0..1."""
        return self.answered[c] / max(1, sum(self.answered))

    def said_share(self, c: int) -> float:
        """Share of class `c` among the answers to the logged batches, the ones that the ema was shown."""
        return self.said[c] / max(1, sum(self.said))

    def ema_share(self, c: int) -> float:
        """Share of class `c` among the ema's predictions, 0..1."""
        return self.ema[c] / max(1, sum(self.ema))

    def iou(self, c: int) -> float:
        """Intersection over union of ema and answers, 0..1; 0 for a class that neither has."""
        return self.agreed[c] / max(1, self.said[c] + self.ema[c] - self.agreed[c])


def windows(intervals: Sequence[Seen]) -> list[Window]:
    """All full windows, oldest first; intervals without signals are passed over."""
    full = [i for i in intervals if i.said]
    return [Window.over(full[end - WINDOW : end]) for end in range(WINDOW, len(full) + 1)]


def before(found: Sequence[Window], step: int) -> Window | None:
    """What drift is counted from: the last window that ends by `step`, else the first; None without any."""
    earlier = [w for w in found if w.step <= step]
    return earlier[-1] if earlier else next(iter(found), None)


@dataclass(frozen=True, slots=True)
class RunWarning:
    """Something that a run shows and its user should know.

    `code`: collapse, unlearned, starved or agreement. `message` is one line that ends with what to try,
    `step` when it was first seen, `classes` the names it is about.
    """

    code: str
    message: str
    step: int
    classes: tuple[str, ...]


class Monitor:
    """Watches one run. `refines_at` is the step at which the ema begins to relabel, None if never."""

    def __init__(self, names: Sequence[str], steps: int, refines_at: int | None) -> None:
        self._names, self._steps, self._refines_at = names, steps, refines_at
        self._last: deque[Seen] = deque(maxlen=WINDOW)
        self._changes: list[float] = []
        self._best = 0.0
        self._known: set[int] = set()
        self._since: dict[str, dict[int, int]] = {}
        self._window: Window | None = None

    def update(self, interval: Seen) -> list[RunWarning]:
        """Take the next interval in; returns what is new. What stands already is not told again."""
        if not interval.said:
            return []
        if self._last:
            self._changes.append(abs(_agreement(interval) - _agreement(self._last[-1])))
        self._last.append(interval)
        if len(self._last) < WINDOW:
            return []
        window = self._window = Window.over(tuple(self._last))
        self._best = max(self._best, window.agreement)
        self._known |= {c for c in self._judged(window) if window.iou(c) >= KNOWN}
        if window.first < WARM_UP * self._steps:
            return []
        fresh = []
        for code, verdicts in self._verdicts(window).items():
            standing = self._since.setdefault(code, {})
            new = [c for c, bad in verdicts.items() if bad and c not in standing]
            for recovered in [c for c, bad in verdicts.items() if bad is False]:
                standing.pop(recovered, None)
            standing.update(dict.fromkeys(new, window.step))
            if new:
                fresh.append(self._warning(code, new, window.step))
        return fresh

    def standing(self) -> list[RunWarning]:
        """What was warned about and has not recovered, one warning a code."""
        return [
            self._warning(code, sorted(since), min(since.values()))
            for code, since in self._since.items()
            if since
        ]

    def _judged(self, window: Window) -> Iterator[int]:
        """Classes that the answers hold enough of."""
        for c, said in enumerate(window.said):
            if said >= LEAST_PIXELS and window.answers_share(c) >= LEAST_SHARE:
                yield c

    def _verdicts(self, window: Window) -> dict[str, dict[int, bool | None]]:
        """By code and class: bad, good, or None for in between, where nothing changes."""
        gone: dict[str, dict[int, bool | None]] = {"collapse": {}, "unlearned": {}, "starved": {}}
        for c in self._judged(window):
            here = _between(window.ema[c] / window.said[c], VANISHED, BACK)
            for code, applies in (("collapse", c in self._known), ("unlearned", c not in self._known)):
                # a class that came back is good under either name
                gone[code][c] = here if applies or here is False else None
            kept = window.kept_of(c)
            gone["starved"][c] = None if kept is None else _between(kept, STARVED, FED)
        return gone | {"agreement": {_TOTAL: self._fallen(window)}}

    def _fallen(self, window: Window) -> bool | None:
        # the median of absolute changes is 0.95 sigma of one batch, and a jump or a slow fall hardly moves it
        noise = statistics.median(self._changes) / 0.95 / WINDOW**0.5
        worst = max(FALL, NOISES * noise)
        return _between(window.agreement - self._best, -worst, -worst / 2)

    def _warning(self, code: str, classes: list[int], step: int) -> RunWarning:
        assert self._window is not None
        named = self._named(classes, self._window)
        text = {
            "collapse": f"the ema predicts almost no {named} any more: try {self._against_collapse()}",
            "unlearned": f"the ema has not learned {named}: try a larger class_balance or more steps"
            + (", and a later refine_from" if self._refines_at is not None else ""),
            "starved": f"almost nothing is kept of {named}: try threshold_kind=quantile or method=naive; "
            "under a class map that merges classes, a wider disclosure",
            "agreement": f"agreement with the answers fell from {_percent(self._best)} to "
            f"{_percent(self._window.agreement)}: try {self._against_collapse()}",
        }[code]
        return RunWarning(code, text, step, tuple(self._names[c] for c in classes if c != _TOTAL))

    def _against_collapse(self) -> str:
        assert self._window is not None
        if self._refines_at is not None and self._window.step >= self._refines_at:
            return "a later refine_from, refine=none, or a larger class_balance"
        return "a smaller lr or a larger class_balance"

    def _named(self, classes: list[int], window: Window) -> str:
        known = [c for c in classes if c != _TOTAL]
        listed = [
            f"{self._names[c]} ({_percent(window.answers_share(c))} of the answers)" for c in known[:_NAMED]
        ]
        return ", ".join(listed) + (f" and {len(known) - _NAMED} more" if len(known) > _NAMED else "")


def _between(value: float, bad: float, good: float) -> bool | None:
    """True below `bad`, False above `good`, else None."""
    return True if value < bad else False if value > good else None


def _agreement(interval: Seen) -> float:
    return sum(interval.agreed) / max(1, sum(interval.said))


def _sums(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*rows, strict=True)))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"
