"""The bar alone, on a machine that others disturb: this service and the bare route in turns of half a second.

Usage: python -m peers.slices [--slices 80] [--seconds 0.5] [--clients 1,8,32] [--write FOLDER]; PYTHONPATH
holds benchmarks and tests. Four minutes. Writes DATE-serving-slices.md and .jsonl (every pair) to FOLDER.

Strategy: `compare` measures a cell for seconds and its partner up to a minute later; where a virtual
machine's neighbours come and go in between, the same work costs 15 ms in one and 20 in the other. Here the
servers are both up, one idle while the other is asked, and partners are neighbours, in random order.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from peers.client import Asker, Job
from peers.intervals import Ratio, ratio_of
from peers.making import make_work
from peers.processes import cpu_ns
from peers.report import machine
from peers.servers import BARE, FOREIGN, OURS, Running, our_service, running
from peers.work import Work

_RESULTS: Final = Path(__file__).resolve().parent / "results"
_BAR: Final = 1.10


@dataclass(frozen=True, slots=True)
class Pair:
    """Server processor time per right answer in two neighbouring slices, ms."""

    clients: int
    ours_ms: float
    bare_ms: float


def slices(
    servers: Sequence[Running], folder: Path, work: Work, clients: int, asked: argparse.Namespace
) -> list[Pair]:
    """So many pairs, for one number of clients."""
    order = random.Random(asked.seed)
    askers = {}
    for server in servers:
        peer = server.peer
        job = Job(
            server.port, peer.path, dict(peer.headers), peer.frame, str(folder), server.root, clients, 0, 0
        )
        askers[peer.name] = (server, Asker(job, work))
        askers[peer.name][1].stretch(1.0)  # warm
    pairs = []
    for number in range(asked.slices):
        costs = {name: _cost(*askers[name], asked.seconds) for name in order.sample([OURS, BARE], 2)}
        pairs.append(Pair(clients, costs[OURS], costs[BARE]))
        if number % 20 == 19:
            print(f"{clients} clients: {number + 1} of {asked.slices} pairs", file=sys.stderr, flush=True)
    for _, asker in askers.values():
        asker.close()
    return pairs


def _cost(server: Running, asker: Asker, seconds: float) -> float:
    before = cpu_ns(server.root)
    tally = asker.stretch(seconds)
    if tally.wrong or tally.failed:
        raise RuntimeError(f"{server.peer.name}: {tally.wrong} wrong, failed: {tally.failed}")
    return (cpu_ns(server.root) - before) / 1e6 / len(tally.latencies)


def page(pairs: Sequence[Pair], asked: argparse.Namespace, began: datetime, facts: str) -> str:
    """The result in Markdown."""
    rows = []
    strata = []
    for clients in asked.clients:
        mine = [pair for pair in pairs if pair.clients == clients]
        strata.append([pair.ours_ms / pair.bare_ms for pair in mine])
        costs = (sorted(pair.ours_ms for pair in mine), sorted(pair.bare_ms for pair in mine))
        medians = " | ".join(f"{c[len(c) // 2]:.2f} ({c[0]:.2f}-{c[-1]:.2f})" for c in costs)
        rows.append(f"| {clients} | {medians} | {_told(ratio_of([strata[-1]]))} |")
    return f"""# Server CPU beside the bare route, in slices, {began:%Y-%m-%d %H:%M} UTC

{facts}

`python -m peers.slices`: {asked.slices} pairs of slices of {asked.seconds:g} s for each number of clients,
partners next to each other in random order; every answer compared byte for byte. Medians (least to most).
Ratios are geometric means of the pairs' own, with 95 % bootstrap intervals. The bar: {_BAR:.2f} at the upper
bound.

| clients | {OURS}, CPU ms/request | {BARE} | ratio |
| --- | --- | --- | --- |
{chr(10).join(rows)}
| pooled | - | - | {_told(ratio_of(strata))} |
"""


def _told(ratio: Ratio) -> str:
    met = "met" if ratio.high <= _BAR else "not met"
    return f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]: {met}"


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slices", type=int, default=80, help="pairs, for each number of clients")
    parser.add_argument("--seconds", type=float, default=0.5, help="of one slice")
    parser.add_argument("--clients", type=lambda text: [*map(int, text.split(","))], default=[1, 8, 32])
    parser.add_argument("--seed", type=int, default=0, help="of the order inside the pairs")
    parser.add_argument("--write", type=Path, default=_RESULTS, help="a folder for the page and the pairs")
    asked = parser.parse_args()
    began, facts = datetime.now(UTC), machine()
    with tempfile.TemporaryDirectory(prefix="peers-") as name, ExitStack() as stack:
        folder = Path(name)
        work = make_work(folder)
        peers = [our_service(folder), next(peer for peer in FOREIGN if peer.name == BARE)]
        servers = [stack.enter_context(running(peer, folder, work)) for peer in peers]
        pairs = [pair for n in asked.clients for pair in slices(servers, folder, work, n, asked)]
    text = page(pairs, asked, began, facts)
    asked.write.mkdir(parents=True, exist_ok=True)
    base = asked.write / f"{began:%Y-%m-%d}-serving-slices"
    base.with_suffix(".md").write_text(text)
    base.with_suffix(".jsonl").write_text("".join(json.dumps(asdict(pair)) + "\n" for pair in pairs))
    print(text)


if __name__ == "__main__":
    main()
