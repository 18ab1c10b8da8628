"""The stream of batches: what it counts, sets aside and draws, and that it goes on where a batch left off."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch

from corte_protocol import Disclosure
from corte_student.asking import Asker
from corte_student.classmap import ClassMap
from corte_student.data.augment import ViewSettings
from corte_student.data.folder import find_images, read_picture
from corte_student.endpoints import connect
from corte_student.ledger import Ledger
from corte_student.plan import Plan
from corte_student.queries import parse_views
from corte_student.stream import Batch, Reading, Stream, StreamState
from faulty_teacher import faulty_teacher, teacher_info
from small_run import save_images

MARGIN = Disclosure(2, 8)
IMAGES, BATCH, STEPS = 6, 2, 9  # the first pass ends with step 2
CUT = 2  # the place of the truncated file


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Five pictures of noise and a file that is none."""
    save_images(tmp_path / "images", {f"{n}.png": (20 + n, 30 - n) for n in range(IMAGES)})
    cut = tmp_path / f"images/{CUT}.png"
    cut.write_bytes(cut.read_bytes()[:300])
    return find_images(tmp_path / "images")


async def batches(
    url: str, paths: list[Path], ledger: Path, reading: Reading, state: StreamState, first: int = 0
) -> tuple[list[Batch], int]:
    """Every batch from step `first` on, and how many requests were sent."""
    opened = Ledger.open(ledger)
    endpoint = connect(url, key=None, insecure_http=False, deadline_s=30, connections=4)
    asker = Asker(endpoint, opened, teacher_info(), MARGIN, 4)
    plan = Plan(len(paths), BATCH, STEPS, 5, rare=0.8)
    view = ViewSettings(16, 16, 0.5, 1.5, 0.4, 1.0)
    classmap = ClassMap.identity(teacher_info())
    stream = Stream(paths, plan, view, asker, classmap, reading, state, ahead=4, memory_bytes=4000)
    queue: asyncio.Queue[Batch | None] = asyncio.Queue(maxsize=1)
    out = []
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(stream.feed(queue, first))
        while (batch := await queue.get()) is not None:
            out.append(batch)
    await endpoint.aclose()
    opened.close()
    return out, asker.tally.sent


def same(a: Batch, b: Batch) -> bool:
    """Whether two batches hold the same bits, their states included."""
    planes = [
        (a.weak, b.weak),
        (a.strong, b.strong),
        *(
            (getattr(a.answers, n), getattr(b.answers, n))
            for n in ("labels", "margin", "confidence", "scores")
        ),
    ]
    arrays = [
        (x.state.statistics.histogram, x.state.seen, x.state.areas, x.answers.statistics.histogram)
        for x in (a, b)
    ]
    return (
        a.step == b.step
        and all((p is None and q is None) or torch.equal(p, q) for p, q in planes)
        and all(np.array_equal(p, q) for p, q in zip(*arrays, strict=True))
        and a.state.aside == b.state.aside
        and a.rng.bit_generator.state == b.rng.bit_generator.state
    )


@pytest.mark.parametrize("views", [["identity"], ["flip", "columns:2"]])
async def test_a_stream_goes_on_behind_any_batch(paths: list[Path], tmp_path: Path, views: list[str]) -> None:
    """From the state after batch n on, batch n + 1 and all that follow are the same bits.

    In the first pass, at its end and after it, with classes drawn and a file set aside. Every view of every
    image is asked once, and nothing the second time.
    """
    reading = Reading(parse_views(views), scores=True)
    with faulty_teacher() as teacher:
        ledger = tmp_path / "ledger"
        whole, sent = await batches(teacher.url, paths, ledger, reading, StreamState.fresh(3, IMAGES))
        assert [batch.step for batch in whole] == list(range(STEPS))
        assert sent == (IMAGES - 1) * len(reading.queries) == teacher.attempts
        for done in (0, 2, 5):
            rest, more = await batches(teacher.url, paths, ledger, reading, whole[done].state, done + 1)
            assert more == 0 and len(rest) == STEPS - done - 1
            assert all(same(a, b) for a, b in zip(whole[done + 1 :], rest, strict=True))


async def test_what_a_stream_counts(paths: list[Path], tmp_path: Path) -> None:
    """Areas and statistics are those of the answers of all usable images, each once; one is set aside."""
    with faulty_teacher() as teacher:
        fresh = StreamState.fresh(3, IMAGES)
        whole, _ = await batches(teacher.url, paths, tmp_path / "ledger", Reading(), fresh)
    last = whole[-1].state
    assert list(last.aside) == [CUT] and last.complete and not last.seen[CUT]
    wanted = np.zeros((IMAGES, 3), int)
    for number, path in enumerate(paths):
        if number != CUT:  # this teacher's class is the red channel modulo three, its margin 90
            red = read_picture(path).pixels[:, :, 0] % 3
            wanted[number] = [int((red == k).sum()) for k in range(3)]
    assert np.array_equal(last.areas, wanted)
    assert np.array_equal(last.statistics.histogram[:, 90], wanted.sum(axis=0))
    assert last.statistics.histogram.sum() == wanted.sum()
    complete = [batch.state.complete for batch in whole]
    assert complete == sorted(complete) and not complete[0] and complete[2]
