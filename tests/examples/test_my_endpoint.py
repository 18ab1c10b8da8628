"""The endpoint of examples/ keeps what every endpoint owes, behind the asker and in the real program."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from corte_protocol import VOID, Disclosure
from corte_protocol.types import VOID_NAME, UInt8
from corte_student.asking import Asker, ask_info
from corte_student.classmap import ClassMap
from corte_student.data.folder import Picture, read_picture
from corte_student.endpoints import Access, Endpoint, connect
from corte_student.endpoints.config import config_from
from corte_student.errors import ImageRefused, SettingsError, Unavailable
from corte_student.ledger import Ledger
from corte_student.metering import Purse
from corte_student.money import Price
from pictures import make_picture
from small_run import save_images

ROOT = Path(__file__).parents[2]
CLASSES = ("road", "car", "sky")
LABELS = Disclosure(1, 0)


def paint(folder: Path, picture: Picture) -> UInt8:
    """Labels for a picture, put where people would put them; the first pixel is void."""
    labels: UInt8 = picture.pixels[:, :, 0] % np.uint8(3)
    labels[0, 0] = VOID
    Pillow.fromarray(labels).save(folder / f"{picture.pixel_digest}.png")
    return labels


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Endpoint]:
    """The endpoint as `--teacher-kind my_endpoint:build` makes it."""
    access = Access(str(folder), "my_endpoint:build", config_from({"classes": list(CLASSES)}, "t"))
    endpoint = connect(access, deadline_s=5, connections=2)
    try:
        yield endpoint
    finally:
        await endpoint.aclose()


async def test_it_tells_what_the_teacher_is(tmp_path: Path) -> None:
    """The same at every call, without the folder's name."""
    async with opened(tmp_path) as endpoint:
        first, second = await endpoint.info(), await endpoint.info()
    assert first == second
    assert first.classes == (*CLASSES, VOID_NAME)
    assert first.disclosure == LABELS
    assert tmp_path.name not in repr(first)


@pytest.mark.parametrize("size", [(12, 16), (1, 1), (7, 5)])
async def test_an_answer_is_read_to_the_pixel(tmp_path: Path, size: tuple[int, int]) -> None:
    """Of the level and size asked for, under the info's revision."""
    picture = make_picture(1, height=size[0], width=size[1])
    labels = paint(tmp_path, picture)
    async with opened(tmp_path) as endpoint:
        info = await endpoint.info()
        stored = await endpoint.predict(picture.body, picture.media_type, LABELS)
        answer = endpoint.read(stored.blob, size[0], size[1], LABELS)
    assert (stored.revision, stored.level) == (info.revision, LABELS)
    assert answer.disclosure == LABELS
    assert np.array_equal(ClassMap.identity(info).apply(answer).labels, labels)


async def test_what_has_no_usable_labels_is_set_aside(tmp_path: Path) -> None:
    """Not painted, no image, another size, an unknown class: each concerns its image alone."""
    small, unknown = make_picture(2), make_picture(3)
    for picture, ids in ((small, np.zeros((2, 2), np.uint8)), (unknown, np.full((12, 16), 4, np.uint8))):
        Pillow.fromarray(ids).save(tmp_path / f"{picture.pixel_digest}.png")
    async with opened(tmp_path) as endpoint:
        for body in (make_picture(1).body, b"no image", small.body, unknown.body):
            with pytest.raises(ImageRefused):
                await endpoint.predict(body, "image/png", LABELS)


async def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    """`aclose` may be called again."""
    async with opened(tmp_path) as endpoint:
        await endpoint.aclose()
        await endpoint.aclose()
        assert not endpoint.down


async def test_behind_the_asker_an_answer_is_bought_once(tmp_path: Path) -> None:
    """One request in the books for two that asked, none for an image that nobody painted; then offline."""
    folder, path, url = tmp_path / "painted", tmp_path / "ledger.sqlite", str(tmp_path / "painted")
    folder.mkdir()
    picture = make_picture(1)
    labels = paint(folder, picture)
    purse = Purse(Price.of(1000, "usd"))  # one dollar each
    ledger = await asyncio.to_thread(Ledger.open, path)
    try:
        async with opened(folder) as endpoint:
            info, offline = await ask_info(endpoint, ledger, url)
            assert not offline
            asker = Asker(endpoint, ledger, info, LABELS, 2, purse=purse, url=url)
            first, second = await asyncio.gather(asker.answer(picture), asker.answer(picture))
            with pytest.raises(ImageRefused, match="nobody has painted"):
                await asker.answer(make_picture(2))
            assert asker.tally.spent == 1_000_000
            assert np.array_equal(first.labels, second.labels)
        info, offline = await ask_info(None, ledger, url)
        assert offline
        later = Asker(None, ledger, info, LABELS, 2, offline=True)
        answer = await later.answer(picture)
        assert np.array_equal(ClassMap.identity(info).apply(answer).labels, labels)
        with pytest.raises(Unavailable):
            await later.answer(make_picture(2))
    finally:
        ledger.close()


@pytest.mark.parametrize(
    ("url", "values", "words"),
    [
        ("/nowhere/at/all", {"classes": ["a", "b"]}, "--teacher-url"),
        (".", {}, "classes"),
        (".", None, "classes"),
    ],
)
def test_what_is_missing_is_said(url: str, values: dict[str, object] | None, words: str) -> None:
    """Before anything is asked."""
    config = None if values is None else config_from(values, "t")
    with pytest.raises(SettingsError, match=words):
        connect(Access(url, "my_endpoint:build", config), deadline_s=1, connections=1)


def test_the_program_collects_from_it(tmp_path: Path) -> None:
    """By its name on the command line, with the command in its docstring; a second run asks nothing."""
    save_images(tmp_path / "images", {f"{n}.png": (40, 48) for n in range(3)})
    (tmp_path / "painted").mkdir()
    for image in (tmp_path / "images").iterdir():
        name = f"{read_picture(image).pixel_digest}.png"
        Pillow.fromarray(np.ones((40, 48), np.uint8)).save(tmp_path / "painted" / name)
    (tmp_path / "classes.toml").write_text('classes = ["road", "car", "sky"]\n')

    def collect() -> str:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "corte_student", "collect", "--images", str(tmp_path / "images")),
                *("--teacher-kind", "my_endpoint:build", "--teacher-url", str(tmp_path / "painted")),
                *("--teacher-config", str(tmp_path / "classes.toml"), "--method", "naive"),
                *("--ledger", str(tmp_path / "ledger.sqlite")),
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "examples")},
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    first, second = collect(), collect()
    assert "requests sent 3, served by the ledger 0" in first
    assert "car 100.0 %" in first
    assert "requests sent 0, served by the ledger 3" in second
