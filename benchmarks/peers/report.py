"""From measurements to a page: medians with their spread over rounds, ratios with intervals, in Markdown."""

import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from peers.client import Cell
from peers.intervals import Ratio, paired, percentile, ratio_of
from peers.servers import BARE, CONSTRAINTS, OURS

BAR: Final = 1.10
"""What the upper bound of our ratio to the bare route may be."""
_SHOWN: Final = ("fastapi", "litserve", "bentoml", "ray", "uvicorn", "onnxruntime", "pillow", "numpy")


@dataclass(frozen=True, slots=True)
class Measured:
    """One server, one number of clients, one round."""

    server: str
    clients: int
    round: int
    cell: Cell


@dataclass(frozen=True, slots=True)
class Direct:
    """The pipeline without a server, one round: images, their seconds of processor time, wrong answers."""

    images: int
    cpu_s: float
    wrong: int

    @property
    def cost_ms(self) -> float:
        """Processor time per image, ms."""
        return 1000.0 * self.cpu_s / self.images


@dataclass(frozen=True, slots=True)
class Standing:
    """A server by itself: seconds to the first right answer, cores when idle, bytes (PSS), processes."""

    server: str
    setup: str
    ready_s: float
    idle: float
    held: int
    processes: int


@dataclass(frozen=True, slots=True)
class Results:
    """All of a run."""

    began: datetime
    machine: str
    seconds: float
    measured: list[Measured]
    directs: list[Direct]
    standings: list[Standing]

    @property
    def servers(self) -> list[str]:
        """In the order in which they were started."""
        return [standing.server for standing in self.standings]

    @property
    def clients(self) -> list[int]:
        """The numbers of clients, ascending."""
        return sorted({one.clients for one in self.measured})

    def cells(self, server: str, clients: int) -> list[Cell]:
        """In order of the rounds."""
        return [one.cell for one in self.measured if (one.server, one.clients) == (server, clients)]

    def costs(self, server: str, clients: int) -> dict[int, float]:
        """Processor time per right answer, ms, by round."""
        chosen = (one for one in self.measured if (one.server, one.clients) == (server, clients))
        return {one.round: one.cell.cost_ms for one in chosen}

    def ratio(self, server: str, clients: Sequence[int]) -> Ratio | None:
        """Cost over that of the bare route, pooled over `clients`; None where one answered nothing."""
        strata = [paired(self.costs(server, n), self.costs(BARE, n)) for n in clients]
        try:
            return ratio_of(strata)
        except ValueError:
            return None

    def over_direct(self, server: str) -> Ratio | None:
        """Cost over that of the pipeline without a server, pooled over all numbers of clients."""
        base = {number: one.cost_ms for number, one in enumerate(self.directs)}
        try:
            return ratio_of([paired(self.costs(server, n), base) for n in self.clients])
        except ValueError:
            return None


def machine() -> str:
    """The machine in a line, and how busy it is now."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return (
        f"{model}, {len(os.sched_getaffinity(0))} cores, {gib:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}; load average before the start {load}"
    )


def page(results: Results) -> str:
    """The whole page."""
    parts = [_head(results), _verdict(results), _cost_table(results), _speed_table(results)]
    return "\n\n".join([*parts, _standing_table(results), _notes(results)]) + "\n"


def raw(results: Results) -> str:
    """Every cell as a line of JSON, its latencies as p50 and p99."""
    lines = []
    for one in results.measured:
        fields = asdict(one.cell)
        latencies = fields.pop("latencies")
        times = {"p50_ms": percentile(latencies, 0.5), "p99_ms": percentile(latencies, 0.99)}
        lines.append({"server": one.server, "clients": one.clients, "round": one.round} | fields | times)
    lines += [{"server": "direct", "round": i} | asdict(one) for i, one in enumerate(results.directs)]
    return "".join(json.dumps(line) + "\n" for line in lines)


def _head(results: Results) -> str:
    rounds = len(results.directs)
    wrong = sum(one.cell.wrong for one in results.measured) + sum(one.wrong for one in results.directs)
    failed = sum(sum(one.cell.failed.values()) for one in results.measured)
    right = sum(one.cell.right for one in results.measured)
    return (
        f"# Serving side by side, {results.began:%Y-%m-%d %H:%M} UTC\n\n"
        f"{results.machine}.\n\n"
        f"`make bench-serving`: {rounds} rounds of {results.seconds:g} s a cell, interleaved, servers in "
        "random order, all others halted meanwhile. JPEG of 256 x 512 in, label map out; every answer "
        f"compared byte for byte: {right} right, {wrong} wrong, {failed} failed. Versions: {_versions()}."
    )


def _verdict(results: Results) -> str:
    lines = [_judged(results.ratio(OURS, [n]), f"{n} client(s)") for n in results.clients]
    lines.append(_judged(results.ratio(OURS, results.clients), "pooled"))
    firsts = _firsts(results)
    lines.append(f"- first in {sum(firsts.values())} of {len(firsts)} cells of requests/s, p50 and p99")
    return (
        f"## The bar: server CPU per request at most {BAR:.2f} of the bare route's, at the upper bound\n\n"
        + "\n".join(lines)
    )


def _judged(ratio: Ratio | None, what: str) -> str:
    if ratio is None:
        return f"- {what}: no answer"
    met = "met" if ratio.high <= BAR else "not met"
    return f"- {what}: {_ratio(ratio)}: {met}"


def _firsts(results: Results) -> dict[tuple[int, str], bool]:
    """Whether ours has the best median, by number of clients and column."""
    found = {}
    for clients in results.clients:
        for name, (read, best, _) in _COLUMNS.items():
            medians = {s: _median(results.cells(s, clients), read) for s in results.servers}
            found[clients, name] = medians[OURS] == best(medians.values())
    return found


def _cost_table(results: Results) -> str:
    rows = []
    for clients in results.clients:
        for server in results.servers:
            cells = results.cells(server, clients)
            ratio = results.ratio(server, [clients])
            failed = sum(sum(cell.failed.values()) for cell in cells)
            rows.append(
                (
                    server,
                    str(clients),
                    _spread(cells, lambda c: c.cost_ms, 2),
                    "1" if server == BARE else _ratio(ratio),
                    _spread(cells, lambda c: 1000 * c.client_cpu_s / max(1, c.right), 2),
                    _spread(cells, lambda c: c.neighbours, 2),
                    f"{sum(c.wrong for c in cells)} / {failed}",
                )
            )
    costs = [one.cost_ms for one in results.directs]
    rows.append(("direct, no HTTP", "-", _numbers(costs, 2), "-", "-", "-", "-"))
    titles = (
        "server",
        "clients",
        "server CPU ms/request",
        "of the bare route",
        "client CPU ms",
        "neighbours, cores",
    )
    return "## Processor time\n\n" + _table((*titles, "wrong / failed"), rows)


_Column = tuple[Callable[[Cell], float], Callable[..., float], int]
_COLUMNS: Final[dict[str, _Column]] = {
    "requests/s": (lambda c: c.rate, max, 1),
    "p50 ms": (lambda c: percentile(c.latencies, 0.5), min, 1),
    "p99 ms": (lambda c: percentile(c.latencies, 0.99), min, 1),
}


def _speed_table(results: Results) -> str:
    rows = []
    for clients in results.clients:
        best = {
            name: best(_median(results.cells(s, clients), read) for s in results.servers)
            for name, (read, best, _) in _COLUMNS.items()
        }
        for server in results.servers:
            cells = results.cells(server, clients)
            row = [server, str(clients)]
            for name, (read, _, digits) in _COLUMNS.items():
                text = _spread(cells, read, digits)
                row.append(f"**{text}**" if _median(cells, read) == best[name] else text)
            rows.append(tuple(row))
    table = _table(("server", "clients", *_COLUMNS), rows)
    return f"## Speed\n\nMedian over rounds (least to most); the best median of each in bold.\n\n{table}"


def _standing_table(results: Results) -> str:
    rows = []
    for one in results.standings:
        pooled = "1" if one.server == BARE else _ratio(results.ratio(one.server, results.clients))
        rows.append(
            (
                one.server,
                pooled,
                _ratio(results.over_direct(one.server)),
                f"{one.ready_s:.1f}",
                f"{100 * one.idle:.1f}",
                f"{one.held / (1 << 20):.0f} / {one.processes}",
                one.setup,
            )
        )
    titles = ("server", "of the bare route, pooled", "of direct, pooled", "start s", "idle, % of a core")
    return "## Servers\n\n" + _table((*titles, "PSS MiB / processes", "set up as"), rows)


def _notes(results: Results) -> str:
    rounds = len(results.directs)
    few = " Fewer than eight rounds: the intervals are too narrow." if rounds < 8 else ""
    return (
        "Ratios are geometric means of the rounds' own ratios, with 95 % intervals of a bootstrap over "
        "rounds, stratified by the number of clients (benchmarks/peers/intervals.py). Processor time is the "
        "kernel's, of all processes of a server. Requests/s and latencies carry what else ran on the machine "
        f"(neighbours), and the client shares its cores.{few}"
    )


def _ratio(ratio: Ratio | None) -> str:
    return "-" if ratio is None else f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def _median(cells: Sequence[Cell], read: Callable[[Cell], float]) -> float:
    return statistics.median(map(read, cells))


def _spread(cells: Sequence[Cell], read: Callable[[Cell], float], digits: int) -> str:
    return _numbers([read(cell) for cell in cells], digits)


def _numbers(values: Sequence[float], digits: int) -> str:
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({least:.{digits}f}-{most:.{digits}f})"


def _versions() -> str:
    pinned = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines() if "==" in line)
    return ", ".join(f"{name} {pinned[name]}" for name in _SHOWN)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
