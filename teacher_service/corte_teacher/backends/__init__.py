"""Where a model meets the service: one method to inhabit, an explicit dict of ours, a loader for anybody's.

A backend owns resize, softmax and top-k, so that dense maps never become Python objects; the service only
narrows and quantises what it gets. Ours know the whole ceiling and compute no scores where none may be
disclosed; a foreign factory knows `k`, and the service drops its scores.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, Protocol, cast, runtime_checkable

from corte_protocol import Disclosure
from corte_protocol.types import Float16, UInt8
from corte_teacher.backends import street
from corte_teacher.card import Card, Tiles, read_card
from corte_teacher.errors import StartError

Planes = tuple[UInt8, Float16 | None]
"""The K best classes of each pixel, uint8 [K, H, W], and their scores, float16 [K, H, W], or None."""


@runtime_checkable
class Backend(Protocol):
    """A segmentation model behind its ceiling K, which it was given at construction."""

    def predict(self, pixels: UInt8) -> tuple[UInt8, Float16 | None]:
        """The K best classes of each pixel of uint8 [H, W, 3]: classes uint8 [K, H, W], scores float16.

        Best first, ties to the lower id, ids as in `Card.outputs`, scores probabilities. Scores may be
        None only where the model gives labels only or the ceiling holds none; then K is 1. Called from
        one thread at a time. Any exception is this service's failure, never the client's.
        """


Builder = Callable[[Path, Card, Disclosure, int], Backend]
"""(model, card, ceiling, threads; 0 for all cores) to a backend: the shape of our own builders."""

Wrapper = Callable[[Backend, Tiles, int, Disclosure], Backend]
"""(a backend of the full ceiling, tiles, answered classes, ceiling) to a backend: the shape of `tiles.py`."""

Factory = Callable[[Path | None, Card | None, int], Backend]
"""(model, card, k) to a backend: the shape of a `package.module:factory`."""

# By module, so that a service on ONNX never imports torch.
OURS: Final = {
    "street": "corte_teacher.backends.onnx:build",
    "onnx": "corte_teacher.backends.onnx:build",
    "timm": "corte_teacher.backends.timm:build",
    "exported": "corte_teacher.backends.exported:build",
    "transformers": "corte_teacher.backends.transformers:build",
}
# The extra that a backend needs; those without one cannot run in another precision than the model file's.
_EXTRAS: Final = {"timm": "torch", "exported": "torch", "transformers": "transformers"}
_FOLDERS: Final = ("transformers",)  # backends whose model is a folder


class Source(NamedTuple):
    """What a service is started on: a backend, its model (None for some foreign ones) and its card.

    The model is a file, or a folder for a backend that reads one.
    """

    backend: str
    model: Path | None
    card: Card


def find_source(backend: str, model: Path | None, card: Path | None) -> Source:
    """Settle the files behind a backend's name. Raises StartError with the remedy."""
    if backend not in OURS and ":" not in backend:
        raise StartError(f"unknown backend {backend!r}: choose {', '.join(OURS)} or package.module:factory")
    if backend == "street":
        if model is not None or card is not None:
            raise StartError(
                "backend street brings its own model and card: choose --backend onnx for another"
            )
        model, card = street.files()
    kind = "folder" if backend in _FOLDERS else "file"
    if model is None and backend in OURS:
        raise StartError(f"backend {backend} needs a model: --model {'DIR' if kind == 'folder' else 'FILE'}")
    if model is not None and not (model.is_dir() if kind == "folder" else model.is_file()):
        raise StartError(f"no model {kind} at {model}")
    if card is None:
        if model is None:
            raise StartError(f"backend {backend} needs a card that names its classes: --card FILE.toml")
        # a folder's name may end in a version, which is no suffix
        card = Path(f"{model.absolute()}.toml") if kind == "folder" else model.with_suffix(".toml")
    read = read_card(card)
    if backend in OURS and backend not in _EXTRAS and read.model and read.model.precision != "float32":
        raise StartError(f"backend {backend} runs in its file's precision: leave [model] precision out")
    return Source(backend, model, read)


def load_backend(source: Source, ceiling: Disclosure, threads: int = 0) -> Backend:
    """Load the model behind `source` with the policy as its ceiling. Raises StartError with the remedy."""
    if source.card.output.kind == "labels" and ceiling.prob_bits:
        raise StartError(f"this model gives labels only, not {ceiling}: choose --disclosure labels")
    tiles, count = source.card.tiles, len(source.card.outputs)
    if tiles is None:
        return _load(source, ceiling, threads)
    inner = _load(source, ceiling if source.card.output.kind == "labels" else Disclosure(count, 16), threads)
    around = cast(Wrapper, _named("corte_teacher.backends.tiles:TiledBackend"))
    return around(inner, tiles, count, ceiling)


def _load(source: Source, ceiling: Disclosure, threads: int) -> Backend:
    if source.backend in OURS:
        assert source.model is not None  # find_source demands one for ours
        builder = cast(Builder, _named(OURS[source.backend]))
        return builder(source.model, source.card, ceiling, threads)
    factory = cast(Factory, _named(source.backend))
    try:
        backend = factory(source.model, source.card, ceiling.top_k)
    except StartError:
        raise
    except Exception as exc:  # foreign code, and the operator is reading: its text helps here
        raise StartError(f"backend {source.backend} failed: {type(exc).__name__}: {exc}") from exc
    if not isinstance(backend, Backend):
        raise StartError(f"backend {source.backend} returned a {type(backend).__name__} without predict()")
    return backend


def _named(spec: str) -> object:
    """The object behind `package.module:name`."""
    module, _, name = spec.partition(":")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as exc:
        extra = next((_EXTRAS[name] for name in _EXTRAS if OURS[name] == spec), None)
        hint = f"pip install 'corte-teacher[{extra}]'" if extra else "is it on PYTHONPATH?"
        raise StartError(f"backend {spec} cannot be imported: {exc} ({hint})") from exc
    except ValueError as exc:
        raise StartError(f"backend {spec!r} is not of the form package.module:factory") from exc
    if not callable(found):
        raise StartError(f"module {module} has no function {name!r}")
    return found
