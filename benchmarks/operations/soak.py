"""A soak in flat memory, and what the service costs at rest and at its start.

Usage: python -m operations.soak [--requests 100000] [--minutes 30] [--write FILE]; whichever ends first.
Sizes, levels and keys change all the time, and a tenth of the bodies is broken.
"""

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from corte_teacher.keys import Grant, create_key
from loopback import free_port
from operations import tell
from operations.client import Connection, jpeg
from operations.overload import PREDICT
from serving import Running, teacher_process

_MIB = 1 << 20
_SIZES = ((64, 96), (128, 256), (96, 128), (200, 150))
_LEVELS = ("labels", "confidence", "margin")


async def soak(teacher: Running, keys: list[str], requests: int, minutes: float) -> dict[str, Any]:
    """Ask until enough was asked; the resident set is sampled every second."""
    bodies = [jpeg(*size, n) for n in range(25) for size in _SIZES]
    bodies += [body[: len(body) // 2] for body in bodies[:10]] + [b"no image"]
    numbers = itertools.count()
    until = time.perf_counter() + minutes * 60
    counted: Counter[int] = Counter()
    samples: list[tuple[int, float]] = []

    async def asking(key: str) -> None:
        connection = Connection(teacher.url, key)
        for n in numbers:
            if n >= requests or time.perf_counter() > until:
                return
            level = _LEVELS[n % len(_LEVELS)]
            said = await connection.post(f"{PREDICT}?disclosure={level}", bodies[n % len(bodies)])
            counted[said.status] += 1

    async def watching() -> None:
        while True:
            samples.append((counted.total(), teacher.resident() / _MIB))
            if len(samples) % 30 == 0:
                done = counted.total() / requests
                print(
                    f"  {counted.total()} of {requests} ({done:.0%}), {samples[-1][1]:.0f} MiB",
                    file=sys.stderr,
                )
            await asyncio.sleep(1.0)

    watch = asyncio.create_task(watching())
    began = time.perf_counter()
    await asyncio.gather(*(asking(keys[n % len(keys)]) for n in range(8)))
    watch.cancel()
    total = counted.total()
    later = [mib for count, mib in samples if count >= total * 0.1]
    fifth = max(1, len(later) // 5)
    first, last = sum(later[:fifth]) / fifth, sum(later[-fifth:]) / fifth
    return {
        "requests": total,
        "minutes": round((time.perf_counter() - began) / 60, 1),
        "answers": dict(counted),
        "MiB, mean of the first fifth after warm-up": round(first, 1),
        "MiB, mean of the last fifth": round(last, 1),
        "MiB, most": round(max(later), 1),
    }


def start(args: list[str]) -> dict[str, Any]:
    """Seconds from exec to ready and MiB then, best and worst of five; CPU share of ten idle seconds."""
    ready, resident, idle = [], [], 0.0
    for n in range(5):
        began = time.perf_counter()
        with teacher_process(args) as teacher:
            ready.append(time.perf_counter() - began)
            resident.append(teacher.resident() / _MIB)
            if n == 4:
                time.sleep(1.0)
                before = teacher.cpu()
                time.sleep(10.0)
                idle = (teacher.cpu() - before) / 10
    return {
        "ready, s (limit 3)": [round(min(ready), 2), round(max(ready), 2)],
        "MiB at ready (limit 350)": [round(min(resident)), round(max(resident))],
        "idle, share of a core (limit 0.01)": round(idle, 4),
    }


def main() -> int:
    """Measure and print as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds")}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys.json"
        grant = Grant(pixels_per_minute=10**12, pixels_per_day=10**14, concurrency=16)
        keys = [create_key(file, name, grant) for name in ("one", "two", "three")]
        args = ["--keys", str(file), "--threads", "1", "--audit-log", str(Path(folder) / "audit.jsonl")]
        args += ["--metrics-port", str(free_port())]
        found["start and rest"] = start(args)
        with teacher_process(args) as teacher:
            found["soak"] = asyncio.run(soak(teacher, keys, options.requests, options.minutes))
    tell(found, options.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
