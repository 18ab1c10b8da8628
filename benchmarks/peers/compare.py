"""The same model behind this service and four others, side by side.

Usage: python -m peers.compare [--rounds 10] [--seconds 5] [--peers litserve,ray] [--clients 1,8,32]
[--write FOLDER]; PYTHONPATH holds benchmarks and tests. Half an hour; the first run builds the peers'
environments before, which takes minutes. Writes DATE-serving.md and DATE-serving.jsonl (every cell, its
latencies as p50 and p99) to FOLDER, by default results/ beside this file, and prints the page.

Strategy: all servers are up, all but one are halted (SIGSTOP), so that none costs another anything. A round
measures every server with every number of clients, in random order, after a warm-up; what is compared is
paired inside a round (intervals.py). The client is a process of its own and compares every answer
(client.py). What a server costs is what the kernel counted for it and all its descendants (processes.py).
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from peers import processes
from peers.client import Cell, Job
from peers.making import make_work
from peers.report import Direct, Measured, Results, Standing, machine, page, raw
from peers.servers import BARE, FOREIGN, Peer, Running, environment_of_benchmarks, our_service, running
from peers.work import GRAPH, GRAPH_FILE

_RESULTS: Final = Path(__file__).resolve().parent / "results"
_PATIENCE_S: Final = 300.0
_SETTLE_S: Final = 0.3  # after SIGCONT: timers that passed meanwhile fire at once


def direct(peer: Peer, folder: Path, seconds: float) -> Direct:
    """The pipeline without a server, in the environment of `peer`."""
    done = subprocess.run(
        [str(peer.python()), "-m", "peers.direct", str(folder), str(seconds)],
        env=environment_of_benchmarks() | {GRAPH: str(folder / GRAPH_FILE)},
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
        check=True,
    )
    return Direct(**json.loads(done.stdout))


def cell(server: Running, folder: Path, clients: int, seconds: float, warm_s: float) -> Cell:
    """One measurement, by a client of its own; a client that gave up is told as a failure of the server."""
    peer = server.peer
    job = Job(
        server.port,
        peer.path,
        dict(peer.headers),
        peer.frame,
        str(folder),
        server.root,
        clients,
        seconds,
        warm_s,
    )
    done = subprocess.run(
        [sys.executable, "-m", "peers.client"],
        input=json.dumps(asdict(job)),
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S + seconds + warm_s,
        check=False,
    )
    if done.returncode != 0:
        print(f"the client of {peer.name} gave up:\n{done.stderr}", file=sys.stderr)
        return Cell(seconds, 0, 0, 0, {"gave up": 1}, [], 0.0, 0.0, 0.0)
    return Cell(**json.loads(done.stdout))


def standing(server: Running, seconds: float) -> Standing:
    """What a server costs that nobody asks, and holds. It must not be halted."""
    before = processes.cpu_ns(server.root)
    began = time.perf_counter()
    time.sleep(seconds)
    idle = (processes.cpu_ns(server.root) - before) / 1e9 / (time.perf_counter() - began)
    held, count = processes.memory(server.root)
    return Standing(server.peer.name, server.peer.setup, server.ready_s, idle, held, count)


class Comparison:
    """All rounds, over servers that are up and halted."""

    def __init__(self, servers: Sequence[Running], folder: Path, asked: argparse.Namespace) -> None:
        self._servers = servers
        self._folder = folder
        self._asked = asked
        self._random = random.Random(asked.seed)
        self._left = asked.rounds * (len(asked.clients) * len(servers) + 1)
        self._began, self._done = time.perf_counter(), 0
        self.measured: list[Measured] = []
        self.directs: list[Direct] = []

    def round(self, number: int) -> None:
        """One round: every server with every number of clients, and the pipeline by itself."""
        asked = self._asked
        bare = next(server.peer for server in self._servers if server.peer.name == BARE)
        self.directs.append(direct(bare, self._folder, asked.seconds))
        self._tell(number, f"direct {self.directs[-1].cost_ms:.2f} ms")
        for clients in self._random.sample(asked.clients, len(asked.clients)):
            for server in self._random.sample(self._servers, len(self._servers)):
                processes.go_on(server.root)
                try:
                    time.sleep(_SETTLE_S)
                    found = cell(server, self._folder, clients, asked.seconds, asked.warm)
                finally:
                    processes.stop(server.root)
                self.measured.append(Measured(server.peer.name, clients, number, found))
                cost = f"{found.cost_ms:.2f} ms, {found.rate:.0f}/s"
                self._tell(number, f"{server.peer.name} x {clients}: {cost}")

    def standings(self) -> list[Standing]:
        """What all servers cost and hold after their work, one after the other."""
        found = []
        for server in self._servers:
            processes.go_on(server.root)
            time.sleep(_SETTLE_S)
            found.append(standing(server, self._asked.idle))
            processes.stop(server.root)
        return found

    def _tell(self, number: int, what: str) -> None:
        self._done += 1
        left = (time.perf_counter() - self._began) / self._done * (self._left - self._done)
        minutes = f"{left / 60:.1f} min left"
        print(f"round {number + 1} of {self._asked.rounds}: {what} ({minutes})", file=sys.stderr, flush=True)


def run(asked: argparse.Namespace) -> Results:
    """Start all servers, measure all rounds, end them."""
    facts = machine()
    began = datetime.now(UTC)
    with (
        tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as name,
        ExitStack() as stack,
    ):
        folder = Path(name)
        work = make_work(folder)
        chosen = [our_service(folder), *(p for p in FOREIGN if p.name in asked.peers or p.name == BARE)]
        for peer in chosen:  # before anything is up: building takes both cores
            peer.python()
        servers = []
        for peer in chosen:
            server = stack.enter_context(running(peer, folder, work))
            processes.stop(server.root)
            servers.append(server)
            print(f"{peer.name}: ready after {server.ready_s:.1f} s", file=sys.stderr, flush=True)
        comparison = Comparison(servers, folder, asked)
        for number in range(asked.rounds):
            comparison.round(number)
        standings = comparison.standings()
    return Results(began, facts, asked.seconds, comparison.measured, comparison.directs, standings)


def _arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    names = [peer.name for peer in FOREIGN]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=5.0, help="of asking, for each cell")
    parser.add_argument("--warm", type=float, default=1.0, help="seconds of asking before")
    parser.add_argument("--idle", type=float, default=5.0, help="seconds of asking nothing, at the end")
    parser.add_argument("--clients", type=_numbers, default=[1, 8, 32])
    parser.add_argument("--peers", type=lambda text: text.split(","), default=names, help=",".join(names))
    parser.add_argument("--seed", type=int, default=0, help="of the order of servers")
    parser.add_argument("--write", type=Path, default=_RESULTS, help="a folder for the page and the cells")
    asked = parser.parse_args(words)
    if unknown := set(asked.peers) - set(names):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; choose from {', '.join(names)}")
    return asked


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main() -> None:
    """Measure and tell."""
    asked = _arguments()
    results = run(asked)
    print(page(results))
    asked.write.mkdir(parents=True, exist_ok=True)
    base = asked.write / f"{results.began:%Y-%m-%d}-serving"
    base.with_suffix(".md").write_text(page(results))
    base.with_suffix(".jsonl").write_text(raw(results))
    print(f"wrote {base}.md and .jsonl", file=sys.stderr)


if __name__ == "__main__":
    main()
