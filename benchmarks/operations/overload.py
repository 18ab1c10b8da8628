"""Too much at once: 400 requests with a deadline, 30 that are cancelled, and a key that floods.

Usage: python -m operations.overload [--write FILE]. The service runs as a user runs it, as a process with
keys, on the embedded model; clients are another process's tasks (`client.py`), without any retry.
"""

import argparse
import asyncio
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from corte_teacher.keys import create_key
from loopback import free_port
from operations import tell
from operations.client import Connection, Said, jpeg, percentile
from serving import Running, teacher_process

PREDICT = "/v1/predict"
_MIB = 1 << 20


async def at_once(teacher: Running, key: str, body: bytes, count: int, deadline_s: float) -> dict[str, Any]:
    """`count` requests in the same moment, each given up after `deadline_s`."""
    before = teacher.resident()
    most = before
    done = False

    async def watch() -> None:
        nonlocal most
        while not done:
            most = max(most, teacher.resident())
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    headers = {"x-deadline-ms": str(int(deadline_s * 1000))}

    async def one() -> Said | None:
        connection = Connection(teacher.url, key)
        try:
            async with asyncio.timeout(deadline_s):
                return await connection.post(PREDICT, body, headers)
        except TimeoutError:
            return None
        finally:
            connection.close()

    answers = await asyncio.gather(*(one() for _ in range(count)))
    done = True
    await watching
    counted = Counter("client time-out" if a is None else str(a.status) for a in answers)
    refused = [a for a in answers if a is not None and a.status in (429, 503)]
    return {
        "answers": dict(counted),
        "refused without Retry-After": sum("retry-after" not in a.headers for a in refused),
        "Retry-After said": dict(Counter(a.headers.get("retry-after", "none") for a in refused)),
        "longest answer, s": round(max(a.took for a in answers if a is not None), 2),
        "growth, MiB": round((most - before) / _MIB, 1),
    }


def forwards(metrics: str) -> int:
    """How many images the model was asked about so far, as the metrics say."""
    with urllib.request.urlopen(metrics) as page:
        text = page.read().decode()
    line = next(x for x in text.splitlines() if x.startswith('corte_stage_seconds_count{stage="forward"}'))
    return int(float(line.split()[-1]))


async def cancelled(teacher: Running, metrics: str, key: str, large: bytes, body: bytes) -> dict[str, Any]:
    """30 requests that wait behind one large image, and whose senders all go away."""
    blocker = asyncio.create_task(Connection(teacher.url, key).post(PREDICT, large))
    await asyncio.sleep(0.05)
    before, cpu = forwards(metrics), teacher.cpu()
    tasks = [asyncio.create_task(Connection(teacher.url, key).post(PREDICT, body)) for _ in range(30)]
    await asyncio.sleep(0.1)
    for task in tasks:
        task.cancel()
    gone = sum(isinstance(r, BaseException) for r in await asyncio.gather(*tasks, return_exceptions=True))
    await blocker
    await asyncio.sleep(3.0)
    return {
        "cancelled": gone,
        "forwards run, without the blocker": forwards(metrics) - before - 1,
        "CPU in 3 s with the blocker, s": round(teacher.cpu() - cpu, 2),
    }


async def flood(teacher: Running, keys: list[str], body: bytes, seconds: float, times: int) -> dict[str, Any]:
    """One key alone, one request at a time; then the same while another key keeps `times` as many up."""

    async def solo(until: float) -> list[Said]:
        connection, said = Connection(teacher.url, keys[0]), []
        while time.perf_counter() < until:
            said.append(await connection.post(PREDICT, body))
        return said

    async def flooding(until: float, counted: Counter[int]) -> None:
        connection = Connection(teacher.url, keys[1])
        while time.perf_counter() < until:
            said = await connection.post(PREDICT, body)
            counted[said.status] += 1
            if (
                said.status != 200
            ):  # as fast as a rude client asks again, without burning this machine's cores
                await asyncio.sleep(0.05)

    await solo(time.perf_counter() + 1)
    alone = await solo(time.perf_counter() + seconds)
    counted: Counter[int] = Counter()
    until = time.perf_counter() + seconds
    crowd = [asyncio.create_task(flooding(until + 0.5, counted)) for _ in range(times)]
    await asyncio.sleep(0.5)
    beside = await solo(until)
    await asyncio.gather(*crowd)
    found: dict[str, Any] = {}
    for name, said in (("alone", alone), ("beside the flood", beside)):
        took = [s.took * 1000 for s in said]
        found[name] = {
            "answers": dict(Counter(s.status for s in said)),
            "p50 ms": round(percentile(took, 0.5), 1),
            "p99 ms": round(percentile(took, 0.99), 1),
        }
    found["flood's answers"] = dict(counted)
    found["p99 over p99 alone (limit 2)"] = round(
        found["beside the flood"]["p99 ms"] / found["alone"]["p99 ms"], 2
    )
    return found


def main() -> int:
    """Measure all and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--seconds", type=float, default=15.0)
    options = parser.parse_args()
    body, large = jpeg(256, 512, 1), jpeg(2000, 2000, 2)
    found: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds")}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys.json"
        keys = [create_key(file, name) for name in ("one", "two")]
        args = ["--keys", str(file), "--threads", "1", "--sizes", "256x512", "--metrics-port"]
        port = free_port()
        with teacher_process([*args, str(port)]) as teacher:
            metrics = f"http://127.0.0.1:{port}/metrics"
            asyncio.run(at_once(teacher, keys[0], body, 8, 10.0))
            found["400 at once, 10 s"] = asyncio.run(at_once(teacher, keys[0], body, 400, 10.0))
            found["400 at once, 4 MP, 10 s"] = asyncio.run(at_once(teacher, keys[0], large, 400, 10.0))
            found["30 cancelled"] = asyncio.run(cancelled(teacher, metrics, keys[0], large, body))
            found["flood"] = asyncio.run(flood(teacher, keys, body, options.seconds, 50))
    tell(found, options.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
