"""Batches: used only where they pay and change nothing, and never at a neighbour's cost."""

import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corte_protocol import Disclosure
from corte_protocol.types import UInt8
from corte_teacher.backends import Planes, find_source, load_backend
from corte_teacher.batching import Batches
from corte_teacher.errors import OutOfMemory

SIZE = (3, 5)
POISON, HUNGRY = 255, 254


class Fragile:
    """An operator's backend: fails on a marked image, alone or in company; has memory for `room` images."""

    def __init__(self, room: int = 99, cost: Sequence[float] = (1.0,), noise: int = 0) -> None:
        self.batches = True
        self.room = room
        self.now = 0.0
        self.asked: list[int] = []
        self._cost = cost
        self._noise = noise

    def predict(self, pixels: UInt8) -> Planes:
        """The red channel as classes."""
        return self.predict_many([pixels])[0]

    def predict_many(self, pixels: Sequence[UInt8]) -> list[Planes]:
        """The same for each; the clock goes on by this batch size's seconds an image."""
        self.asked.append(len(pixels))
        self.now += len(pixels) * self._cost[min(len(pixels), len(self._cost)) - 1]
        if len(pixels) > self.room or any(image[0, 0, 0] == HUNGRY for image in pixels):
            raise OutOfMemory("no room")
        if any(image[0, 0, 0] == POISON for image in pixels):
            raise RuntimeError("poisoned")
        noise = self._noise if len(pixels) > 1 else 0
        return [((image[None, ..., 0] % 7 + noise).astype(np.uint8), None) for image in pixels]

    def clock(self) -> float:
        """The time that its work took."""
        return self.now


def image(value: int) -> UInt8:
    """A one-colour image."""
    return np.full((*SIZE, 3), value, np.uint8)


def right(result: Planes | Exception, value: int) -> bool:
    """Whether this is the answer to the image of that colour."""
    return not isinstance(result, Exception) and bool((result[0] == value % 7).all())


def test_a_thousand_poisoned_batches_harm_no_neighbour() -> None:
    """In 1,000 batches of eight with one to four bad images each good one gets its answer."""
    rng = np.random.default_rng(3)
    batches = Batches(Fragile())
    for _ in range(1000):
        values = rng.integers(0, 250, 8)
        values[rng.choice(8, rng.integers(1, 5), replace=False)] = POISON
        results = batches.run([image(int(v)) for v in values])
        for value, result in zip(values, results, strict=True):
            if value == POISON:
                assert isinstance(result, RuntimeError)
            else:
                assert right(result, int(value))


@given(st.lists(st.sampled_from([1, 2, 3, POISON, HUNGRY]), min_size=1, max_size=8), st.integers(1, 8))
def test_every_image_gets_its_own_answer(values: list[int], room: int) -> None:
    """Whatever fails and however little memory there is, answers and failures stand where they belong."""
    results = Batches(Fragile(room)).run([image(v) for v in values])
    for value, result in zip(values, results, strict=True):
        if value == POISON:
            assert isinstance(result, RuntimeError)
        elif value == HUNGRY:
            assert isinstance(result, OutOfMemory)
        else:
            assert right(result, value)


def test_out_of_memory_halves_and_is_remembered() -> None:
    """With room for three, eight run as 8, 4, 2, 2, ...; the sizes that failed rest, smaller ones do not."""
    backend = Fragile(cost=(1.0, 0.8, 0.7, 0.6, 0.5, 0.5, 0.5, 0.4))
    batches = Batches(backend, clock=backend.clock)
    batches.try_out([SIZE])
    assert batches.size_for(SIZE, 8) == 8
    backend.room, backend.asked = 3, []
    assert all(right(r, 4) for r in batches.run([image(4)] * 8))
    assert backend.asked == [8, 4, 2, 2, 4, 2, 2]
    assert batches.size_for(SIZE, 8) == 2
    backend.room, backend.now = 99, backend.now + 601
    assert batches.size_for(SIZE, 8) == 8


def test_batches_that_do_not_pay_are_not_used() -> None:
    """Where eight together take longer an image than one alone, images go alone; nothing waits."""
    backend = Fragile(cost=(1.0, 1.1, 1.2, 1.3))
    batches = Batches(backend, clock=backend.clock)
    batches.try_out([SIZE])
    assert batches.size_for(SIZE, 8) == 1 and batches.largest == 1


def test_batches_that_stop_paying_rest() -> None:
    """A batch size whose real forwards became slow is left, and tried again after its rest."""
    costs = [1.0, 0.5]
    backend = Fragile(cost=costs)
    batches = Batches(backend, most=2, clock=backend.clock)
    batches.try_out([SIZE])
    assert batches.size_for(SIZE, 2) == 2
    costs[1] = 2.0
    for _ in range(20):
        batches.run([image(1)] * 2)
    assert batches.size_for(SIZE, 2) == 1


def test_one_forward_after_its_rest_decides_whether_a_batch_size_pays_again() -> None:
    """After the rest one batch is tried: a slow one rests once more, a fast one is back for good."""
    costs = [1.0, 0.5]
    backend = Fragile(cost=costs)
    batches = Batches(backend, most=2, clock=backend.clock)
    batches.try_out([SIZE])
    costs[1] = 4.0
    while batches.size_for(SIZE, 2) == 2:
        batches.run([image(1)] * 2)
    backend.now += 601
    assert batches.size_for(SIZE, 2) == 2
    batches.run([image(1)] * 2)
    assert batches.size_for(SIZE, 2) == 1
    costs[1] = 0.5
    backend.now += 601
    batches.run([image(1)] * 2)
    assert batches.size_for(SIZE, 2) == 2


def test_a_batch_size_that_does_not_pay_leaves_the_larger_ones() -> None:
    """Where two together became slow, four that pay are taken; lack of memory rests larger ones too."""
    costs = [1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    backend = Fragile(cost=costs)
    batches = Batches(backend, clock=backend.clock)
    batches.try_out([SIZE])
    costs[1] = 9.0
    batches.run([image(1)] * 2)
    assert (batches.size_for(SIZE, 2), batches.size_for(SIZE, 4)) == (1, 4)
    backend.room = 1
    batches.run([image(1)] * 4)
    assert batches.size_for(SIZE, 8) == 1


class Wasteful:
    """An operator's backend that fails while it holds a large array, and remembers the last one weakly."""

    batches = True
    last: weakref.ref[UInt8]

    def predict(self, pixels: UInt8) -> Planes:
        """Never answers."""
        return self.predict_many([pixels])[0]

    def predict_many(self, pixels: Sequence[UInt8]) -> list[Planes]:
        """Lacks memory, while its array lives, unless for one image: then it fails in another way."""
        held = np.zeros(1000, np.uint8)
        if len(pixels) > 1:
            assert getattr(self, "last", lambda: None)() is None, "what failed before still holds memory"
        self.last = weakref.ref(held)
        raise OutOfMemory("no room") if len(pixels) > 1 else RuntimeError("poisoned")


def test_a_failure_holds_no_memory() -> None:
    """What a failed forward allocated is gone before its halves run, and while its exception is kept."""
    backend = Wasteful()
    results = Batches(backend).run([image(1)] * 4)
    assert all(isinstance(result, RuntimeError) for result in results)
    assert backend.last() is None


def test_batches_that_change_a_label_are_never_used() -> None:
    """A model whose answers in company differ from those alone runs one image at a time, however fast."""
    backend = Fragile(cost=(1.0, 0.1), noise=1)
    batches = Batches(backend, clock=backend.clock)
    batches.try_out([SIZE])
    assert batches.size_for(SIZE, 8) == 1


def test_sizes_that_were_not_tried_run_alone() -> None:
    """What was not checked at load is not batched; how long it takes is known from its pixels."""
    backend = Fragile(cost=(1.0, 0.1))
    batches = Batches(backend, clock=backend.clock)
    batches.try_out([SIZE])
    assert batches.size_for((9, 9), 8) == 1
    assert batches.seconds(2 * SIZE[0] * SIZE[1]) == pytest.approx(2.0)


def test_a_real_model_answers_the_same_in_any_batch(tiny: Path) -> None:
    """An ONNX model in batches of two to eight: class planes bit for bit those alone."""
    backend = load_backend(find_source("onnx", tiny, None), Disclosure(2, 8), 1)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (21, 34, 3), np.uint8) for _ in range(8)]
    alone = [backend.predict(one) for one in images]
    batches = Batches(backend)
    for n in (2, 3, 8):
        for got, single in zip(batches.run(images[:n]), alone, strict=False):
            assert not isinstance(got, Exception)
            assert np.array_equal(got[0], single[0])


LIMITED = """
import resource, sys
import numpy as np
from pathlib import Path
from corte_protocol import Disclosure
from corte_teacher.backends import find_source, load_backend
from corte_teacher.batching import Batches
from corte_teacher.errors import OutOfMemory

backend = load_backend(find_source("onnx", Path(sys.argv[1]), None), Disclosure(2, 8), 1)
batches = Batches(backend, most=8)
small = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
before = batches.run([small])[0]
grown = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (grown + 150 * 2**20,) * 2)
large = np.zeros((6000, 6000, 3), np.uint8)
(result,) = batches.run([large])
assert isinstance(result, OutOfMemory), result
del large, result
middle = np.random.default_rng(1).integers(0, 256, (900, 900, 3), np.uint8)
results = batches.run([middle] * 8)
assert not any(isinstance(r, Exception) for r in results), results
after = batches.run([small])[0]
assert np.array_equal(before[0], after[0]) and np.array_equal(before[1], after[1])
print("lives")
"""


def test_out_of_memory_leaves_the_process_alive(tiny: Path) -> None:
    """Under RLIMIT_AS an image that is too large is refused, a batch too large is halved, and all goes on."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tiny)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() == "lives", done.stderr[-2000:]
