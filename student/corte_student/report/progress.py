"""How far a verb has come: bars on a terminal, one plain line every few seconds anywhere else.

Strategy: the caller says what is done and hands over facts as text; speed and time left are worked out
here. A log file or a CI page gets whole lines only, never control characters.
"""

import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars

_WINDOW_S = 30.0  # recent speed: asking is slow at first, the ledger fast, so a mean over all would mislead


class Progress:
    """Progress of `total` steps called `title`, each over `batch` images; use it in a `with` block.

    `initial` steps were done before (a resume) and do not count as speed.
    """

    def __init__(
        self,
        total: int,
        title: str,
        *,
        batch: int = 1,
        initial: int = 0,
        plain_every: float = 5.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._title, self._batch = total, title, batch
        self._initial = self._done = initial
        self._every, self._clock = plain_every, clock
        self._stream = sys.stderr if stream is None else stream  # stdout is for results
        self._facts: dict[str, object] = {}
        self._began = self._said = clock()
        self._marks: deque[tuple[float, int]] = deque([(self._began, initial)])
        self._bars = self._make_bars()
        self._task = (
            None
            if self._bars is None
            else self._bars.add_task(title, total=total, completed=initial, facts="")
        )

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._write(self._last_line(complete=kind is None))

    def update(self, done: int, **facts: object) -> None:
        """`done` steps are through; `facts` such as kept="71 %" stay until they are given anew."""
        now = self._clock()
        self._done = done
        self._facts |= facts
        self._marks.append((now, done))
        while len(self._marks) > 2 and now - self._marks[1][0] >= _WINDOW_S:
            self._marks.popleft()
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done, facts=self._described(self._speed_facts()))
        elif now - self._said >= self._every and done < self._total:
            self._said = now
            self._write(
                f"{self._title} {done}/{self._total}  {self._described(self._speed_facts())}".rstrip()
            )

    def note(self, line: str) -> None:
        """Say something at once, in a line that stays; a bar moves below it."""
        if self._bars is not None:
            self._bars.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            self._write(line)

    def _make_bars(self) -> Bars | None:
        console = Console(file=self._stream)
        # asked of the stream itself: FORCE_COLOR makes rich take a log file for a terminal
        if not self._stream.isatty() or console.is_dumb_terminal:
            return None
        return Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            console=console,
            transient=True,  # the final line replaces the bar
        )

    def _speed_facts(self) -> dict[str, object]:
        (then, before), (now, done) = self._marks[0], self._marks[-1]
        if now <= then or done <= before:
            return {}
        rate = (done - before) / (now - then)
        return {
            "": f"{rate * self._batch:.1f} images/s",
            "ETA": clock_text((self._total - done) / rate),
        }

    def _last_line(self, *, complete: bool) -> str:
        took = self._clock() - self._began
        speed: dict[str, object] = {}
        if took > 0 and self._done > self._initial:
            speed[""] = f"{(self._done - self._initial) * self._batch / took:.1f} images/s"
        state = "" if complete else " stopped at"
        line = f"{self._title}{state} {self._done}/{self._total} in {clock_text(took)}"
        return f"{line}  {self._described(speed)}".rstrip()

    def _described(self, speed: dict[str, object]) -> str:
        return "  ".join(f"{name} {value}".strip() for name, value in (speed | self._facts).items())

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


def clock_text(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
