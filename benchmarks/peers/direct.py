"""The pipeline without a server, in a peer's environment. Usage: FOLDER SECONDS; prints a `report.Direct`."""

import json
import sys
import time
from pathlib import Path

from peers.pipeline import Pipeline
from peers.work import read_work


def main() -> None:
    """Answer for so long, after one round of all pictures."""
    work, seconds = read_work(Path(sys.argv[1])), float(sys.argv[2])
    pipeline = Pipeline()
    wrong = sum(pipeline.answer(p) != t for p, t in zip(work.pictures, work.truth, strict=True))
    images, until, began = 0, time.perf_counter() + seconds, time.process_time()
    while time.perf_counter() < until:
        pipeline.answer(work.pictures[images % len(work.pictures)])
        images += 1
    cpu_s = time.process_time() - began
    json.dump({"images": images, "cpu_s": cpu_s, "wrong": wrong}, sys.stdout)


if __name__ == "__main__":
    main()
