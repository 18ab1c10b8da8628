"""Memory of `corte-student collect` over thousands of images, and how near `plan` comes to what collecting
takes.

Usage: python -m speed.collecting [--images 5000] [--write FILE]. Both run as a user runs them, as processes;
memory is the resident set that the kernel reports, sampled, and given beside its limit.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from speed.slow_teacher import slow_teacher

_WARM_SHARE = 0.1
_LIMIT_MIB = 50
_LIMIT_SHARE = 0.20
_PRICE = "1.50"
_MICROS = 1500
_IN_FLIGHT = 8


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident MiB after warm-up (a tenth of the images), the most after that, and at the end."""

    images: int
    warm: float
    most: float
    last: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds and micros, as planned and as they came. `latency_s` is the teacher's."""

    latency_s: float
    images: int
    planned_s: float
    took_s: float
    planned_cost: int
    cost: int


def write_images(folder: Path, count: int, height: int, width: int) -> None:
    """JPEGs of blocks, each different."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
        Pillow.fromarray(coarse).resize((width, height), Pillow.Resampling.NEAREST).save(
            folder / f"{index:05}.jpg", quality=85
        )


def student(verb: str, url: str, images: Path, ledger: Path, *more: str) -> list[str]:
    """The command."""
    words = ["--teacher-url", url, "--images", str(images), "--ledger", str(ledger)]
    return [sys.executable, "-m", "corte_student", verb, *words, "--set", f"in_flight={_IN_FLIGHT}", *more]


def memory(base: Path, count: int) -> Memory:
    """Collect `count` images of 256 x 512 and watch the process."""
    write_images(base / "many", count, 256, 512)
    samples: list[tuple[float, int]] = []
    with slow_teacher(0.0) as url:
        words = student("collect", url, base / "many", base / "many.sqlite")
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        began = time.monotonic()
        while process.poll() is None:
            samples.append((time.monotonic() - began, resident(process.pid)))
            time.sleep(0.2)
        assert process.stderr is not None
        told = process.stderr.read()
    if process.returncode != 0:
        raise SystemExit(told)
    end = samples[-1][0]
    late = [kib / 1024 for at, kib in samples if at >= _WARM_SHARE * end and kib]
    return Memory(count, late[0], max(late), late[-1])


def resident(pid: int) -> int:
    """KiB in memory; 0 where the process is gone."""
    try:
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return 0 if found is None else int(found[1])


def forecast(base: Path, latency_s: float, count: int) -> Forecast:
    """Plan, then collect, against a teacher of known latency; the three probes count as planned work done."""
    folder, ledger = base / f"plan-{latency_s}", base / f"plan-{latency_s}.sqlite"
    write_images(folder, count, 128, 256)
    priced = ("--price-per-1k", _PRICE)
    with slow_teacher(latency_s) as url:
        words = student("plan", url, folder, ledger, *priced, "--no-training", "--json")
        plan = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        words = student("collect", url, folder, ledger, *priced)
        done = subprocess.run(words, check=True, capture_output=True, text=True)
    found = re.search(r"^collect \d+/\d+ in ((?:\d+:)+\d+)", done.stderr, re.MULTILINE)
    rate = re.search(r"^collect .*?([\d.]+) images/s", done.stderr, re.MULTILINE)
    spent = re.search(r"spent ([\d.]+) usd", done.stderr)
    assert found is not None and rate is not None and spent is not None, done.stderr
    return Forecast(
        latency_s,
        count,
        plan["seconds"],
        count / float(rate[1]),  # finer than the clock of whole seconds beside it
        plan["cost"],
        round(float(spent[1]) * 1e6) + plan["asked_now"] * _MICROS,
    )


def report(held: Memory, forecasts: list[Forecast]) -> str:
    """Both tables, each figure beside its limit."""
    lines = [
        f"# Collecting, {datetime.now(UTC).date()}",
        "",
        f"`python -m speed.collecting --images {held.images}`, two CPU cores, the teacher beside it.",
        "",
        "| images of 256 x 512 | MiB when warm | most after | at the end | growth | limit |",
        "|--:|--:|--:|--:|--:|--:|",
        f"| {held.images} | {held.warm:.0f} | {held.most:.0f} | {held.last:.0f} | "
        f"{held.most - held.warm:+.0f} | +{_LIMIT_MIB} |",
        "",
        f"`plan` against the run that follows, {_IN_FLIGHT} in flight, {_PRICE} usd per 1000:",
        "",
        "| latency | images | planned s | took s | planned / took | limit | planned, paid (micros) |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {1000 * one.latency_s:.0f} ms | {one.images} | {one.planned_s:.1f} | {one.took_s:.1f} | "
        f"{one.planned_s / one.took_s:.2f} | {1 - _LIMIT_SHARE:.2f} to {1 + _LIMIT_SHARE:.2f} | "
        f"{one.planned_cost}, {one.cost} |"
        for one in forecasts
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run as a program."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--images", type=int, default=5000)
    flags.add_argument("--write", type=Path, default=None)
    given = flags.parse_args()
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        forecasts = [forecast(base, latency, count) for latency, count in ((0.1, 400), (0.5, 160))]
        text = report(memory(base, given.images), forecasts)
    print(text)
    if given.write is not None:
        given.write.write_text(text)


if __name__ == "__main__":
    main()
