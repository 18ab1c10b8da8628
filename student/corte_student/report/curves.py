"""A run's signals over its steps as one picture: kept share, agreement, confidence.

Strategy: Pillow only. Lines and grid are drawn three times too large and reduced, which smooths them; text is
drawn at its own size. Every line has its name at its right end, so that nobody has to match nineteen colours
with a legend far away; names that would overlap are moved apart and tied to their line.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from corte_student.report.drawing import FAINT, GRID, INK, MARGIN, PAPER, TITLE_SIZE, Rgb, fitted, font
from corte_student.report.recorded import Recorded
from corte_student.report.signals import WINDOW, windows

_SIZE, _PITCH = 14, 19  # of text, and from one name to the next, pixels
_PLOT, _LEFT, _RIGHT, _LEAD = 820, 52, 220, 34  # width of a plot, beside it, and of a name's tie
_LEAST_HEIGHT, _LOWEST = 240, 160
_TOP, _BOTTOM, _BETWEEN = TITLE_SIZE + 14, 30, 22
_FINE = 3
_HIGHEST = 2.0  # a class that the ema adds much to must not flatten all others
_LIGHTEST = 150.0  # luminance, 0..255: lighter lines cannot be followed on white

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """A named line; `points` are steps and shares (1 is 100 %), by rising step."""

    name: str
    color: Rgb
    points: Sequence[Point]
    width: float = 1.6


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines that share one pair of axes."""

    title: str
    lines: Sequence[Line]


def charts(run: Recorded, colors: Sequence[Rgb]) -> list[Chart]:
    """The three charts of a run; `colors` are its classes'. Raises ValueError without enough intervals."""
    found = windows(run.intervals)
    if not found:
        raise ValueError(f"curves need {WINDOW} intervals with signals")
    classes = list(zip(range(len(run.names)), run.names, map(readable, colors), strict=True))
    kept = [
        Line(
            name,
            color,
            [(i.step, i.kept_per_class[c] / n) for i in run.intervals if (n := i.answered_per_class[c])],
        )
        for c, name, color in classes
    ]
    agreed = [
        Line(name, color, [(w.step, share) for w in found if (share := w.agreement_of(c)) is not None])
        for c, name, color in classes
    ]
    every = [(i.step, sum(i.kept_per_class) / max(1, sum(i.answered_per_class))) for i in run.intervals]
    agreement = Line("all classes", INK, [(w.step, w.agreement) for w in found], 3.0)
    confidence = Line("confidence", readable((66, 133, 244)), [(w.step, w.confidence) for w in found], 3.0)
    mean = f"mean of {WINDOW} intervals"
    return [
        Chart("Targets kept, share of the answers of a class", [*kept, Line("all classes", INK, every, 3.0)]),
        Chart(f"Agreement of ema and answers, {mean}", [*agreed, agreement]),
        Chart(
            f"Confidence of the ema beside agreement, {mean}",
            [confidence, Line("agreement", INK, agreement.points, 3.0)],
        ),
    ]


def curves(run: Recorded, colors: Sequence[Rgb]) -> Image.Image:
    """The picture of `charts`, one below the other."""
    last = run.intervals[-1].step if run.intervals else 0
    refines_at = run.refines_at if run.refines_at is not None and run.refines_at <= last else None
    drawn = [_draw(chart, last, refines_at) for chart in charts(run, colors)]
    height = sum(picture.height for picture in drawn) + (len(drawn) - 1) * _BETWEEN + 2 * MARGIN
    sheet = Image.new("RGB", (drawn[0].width + 2 * MARGIN, height), PAPER)
    top = MARGIN
    for picture in drawn:
        sheet.paste(picture, (MARGIN, top))
        top += picture.height + _BETWEEN
    return sheet


def save_curves(path: Path, run: Recorded, colors: Sequence[Rgb]) -> None:
    """Write `curves` to a PNG file. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    curves(run, colors).save(path, "PNG", optimize=True)


def spread(wanted: Sequence[float], pitch: float, low: float, high: float) -> list[float]:
    """Places at least `pitch` apart, in the order of `wanted` and as close to it as that allows.

    The sum of squared moves is the least possible; then all that lies outside of `low` and `high` moves in.
    Where there is no room for all, they start at `low` and run over `high`.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    # with k pitches taken off the k-th, "at least a pitch apart" is "not falling": pool what falls
    pools: list[tuple[float, int]] = []
    for rank, i in enumerate(order):
        mean, count = wanted[i] - rank * pitch, 1
        while pools and pools[-1][0] > mean:
            other, others = pools.pop()
            mean, count = (mean * count + other * others) / (count + others), count + others
        pools.append((mean, count))
    level = [mean for mean, count in pools for _ in range(count)]
    most = max(low, high - pitch * (len(wanted) - 1))
    places = [0.0] * len(wanted)
    for rank, i in enumerate(order):
        places[i] = min(max(level[rank], low), most) + rank * pitch
    return places


def readable(color: Rgb) -> Rgb:
    """A class's colour, darkened as far as a thin line on white needs."""
    light = 0.2126 * color[0] + 0.7152 * color[1] + 0.0722 * color[2]
    by = min(1.0, _LIGHTEST / max(light, 1.0))
    return round(color[0] * by), round(color[1] * by), round(color[2] * by)


def ticks(top: float, most: int) -> list[float]:
    """Round numbers from 0 up to `top`, at most `most` + 1 of them."""
    rough = top / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 2.5, 5, 10) if power * k >= rough * (1 - 1e-9))
    return [round(k * step, 10) for k in range(math.floor(top / step + 1e-9) + 1)]


@dataclass(frozen=True, slots=True)
class _Axes:
    """Where a plot lies within its picture, and what its corner stands for."""

    height: int
    steps: int
    top: float

    def x(self, step: float) -> float:
        return _LEFT + _PLOT * step / self.steps

    def y(self, share: float) -> float:
        return _TOP + self.height * (1 - min(share, self.top) / self.top)


def _draw(chart: Chart, steps: int, refines_at: int | None) -> Image.Image:
    lines = [line for line in chart.lines if line.points]
    highest = min(_HIGHEST, max(share for line in lines for _, share in line.points))
    top = math.ceil(max(1.0, highest - 0.005) * 4) / 4
    height = max(_LEAST_HEIGHT if len(lines) > 2 else _LOWEST, _PITCH * len(lines))
    axes = _Axes(height, steps, top)
    size = (_LEFT + _PLOT + _RIGHT, _TOP + height + _BOTTOM)
    places = spread([axes.y(line.points[-1][1]) for line in lines], _PITCH, _TOP, _TOP + height)
    fine = Image.new("RGB", (size[0] * _FINE, size[1] * _FINE), PAPER)
    draw = ImageDraw.Draw(fine)
    _draw_grid(draw, axes, refines_at)
    for line, place in zip(lines, places, strict=True):
        _draw_line(draw, axes, line, place)
    picture = fine.resize(size, Image.Resampling.LANCZOS)
    _write(ImageDraw.Draw(picture), chart.title, axes, refines_at)
    face, words = font(_SIZE), ImageDraw.Draw(picture)
    for line, place in zip(lines, places, strict=True):
        text = fitted(f"{line.name}  {100 * line.points[-1][1]:.0f} %", face, _RIGHT - _LEAD - 6)
        words.text((_LEFT + _PLOT + _LEAD + 4, place), text, INK, face, anchor="lm")
    return picture


def _draw_grid(draw: ImageDraw.ImageDraw, axes: _Axes, refines_at: int | None) -> None:
    left, right = _LEFT * _FINE, (_LEFT + _PLOT) * _FINE
    for share in ticks(axes.top, 5):
        y = axes.y(share) * _FINE
        draw.line([(left, y), (right, y)], FAINT if share == 0 else GRID, _FINE)
    if refines_at is not None:
        x = axes.x(refines_at) * _FINE
        for y in range(_TOP, _TOP + axes.height, 8):
            draw.line([(x, y * _FINE), (x, (y + 4) * _FINE)], FAINT, _FINE)


def _draw_line(draw: ImageDraw.ImageDraw, axes: _Axes, line: Line, place: float) -> None:
    points = [(axes.x(step) * _FINE, axes.y(share) * _FINE) for step, share in line.points]
    width = round(line.width * _FINE)
    if len(points) > 1:
        draw.line(points, line.color, width, joint="curve")
    x, y = points[-1]
    radius = width
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), line.color)
    edge, end = (_LEFT + _PLOT + 6) * _FINE, (_LEFT + _PLOT + _LEAD - 12) * _FINE
    tie = [(x, y), (edge, y), (end, place * _FINE), (end + 12 * _FINE, place * _FINE)]
    draw.line(tie[:3], line.color, _FINE)
    draw.line(tie[2:], line.color, 4 * _FINE)


def _write(draw: ImageDraw.ImageDraw, title: str, axes: _Axes, refines_at: int | None) -> None:
    face = font(_SIZE)
    draw.text((0, 0), title, INK, font(TITLE_SIZE))
    for share in ticks(axes.top, 5):
        draw.text((_LEFT - 8, axes.y(share)), f"{100 * share:.0f} %", FAINT, face, anchor="rm")
    for step in ticks(axes.steps, 8):
        text = f"{step:.0f}" if step else "step 0"
        draw.text((axes.x(step), _TOP + axes.height + 10), text, FAINT, face, anchor="mt")
    if refines_at is not None:
        draw.text((axes.x(refines_at) + 5, _TOP + axes.height - 6), "refinement", FAINT, face, anchor="lb")
