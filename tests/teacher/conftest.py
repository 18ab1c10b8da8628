"""A tiny model and services on it, shared by the tests of the teacher."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corte_protocol.types import UInt8
from corte_teacher.card import Card
from corte_teacher.keys import create_key
from serving import running_teacher
from teacher.tiny_models import as_toml, card_data, write_model

MAX_BODY, MAX_PIXELS = 200_000, 10_000


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file with its card beside it."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "secret-model.toml").write_text(as_toml(card_data()))
    return write_model(folder / "secret-model.onnx", Card.model_validate(card_data()))


@pytest.fixture(scope="session")
def open_teacher(tiny: Path) -> Iterator[str]:
    """The URL of an open service at `margin` with small limits."""
    args = ["--backend", "onnx", "--model", str(tiny), "--open", "--max-body-bytes", str(MAX_BODY)]
    with running_teacher([*args, "--max-pixels", str(MAX_PIXELS)]) as url:
        yield url


@pytest.fixture(scope="session")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A key file and the one key in it."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    return path, create_key(path, "alice")


@pytest.fixture(scope="session")
def keyed_teacher(tiny: Path, key_file: tuple[Path, str]) -> Iterator[str]:
    """The URL of a service at `full` that asks for a key, set up by environment variables only."""
    env = {"BACKEND": "onnx", "MODEL": str(tiny), "KEYS": str(key_file[0]), "DISCLOSURE": "full"}
    with running_teacher(env={f"CORTE_TEACHER_{name}": value for name, value in env.items()}) as url:
        yield url


def encoded(pixels: UInt8, kind: str = "PNG") -> bytes:
    """Pixels as an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def pixels() -> UInt8:
    """A noisy picture, uint8 [21, 34, 3]."""
    return np.random.default_rng(5).integers(0, 256, (21, 34, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """Pixels to an image file."""
    return encoded
