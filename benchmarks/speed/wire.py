"""Bytes and milliseconds of an answer at 512 x 1024 and 19 classes, level by level, beside other forms of it;
and the time from full-size logits to a frame.

Usage: python -m speed.wire [--images 24] [--repeats 5] [--note TEXT] [--write FILE]. Everything runs on one
core, which the process pins itself to.

Strategy: the predictions are real, a Cityscapes model by others on CamVid's street images, resized to
512 x 1024. The second part feeds the model's own logits, at full size, to a graph that is nothing but the
head which the service appends to every ONNX model.
"""

import argparse
import base64
import importlib
import importlib.util
import io
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import zstandard

# as in corte_teacher.backends.onnx: no usage events
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime
from onnx import ModelProto, TensorProto, helper
from PIL import Image as Pillow

from corte_protocol import Disclosure, decode_prediction, encode_prediction
from corte_protocol.types import Float16, UInt8
from corte_teacher.backends import Backend, Source, load_backend
from corte_teacher.backends.onnx import OnnxBackend, build
from corte_teacher.backends.prepare import Prepared, prepare
from corte_teacher.card import Card, Input, read_card
from corte_teacher.disclosure import disclose

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("CORTE_TEST_DATA", ROOT / "../shared/data")).resolve()
MODEL = DATA / "teachers" / "deeplab_cityscapes.onnx"
STREET = DATA / "camvid" / "val"
CARD = ROOT / "examples" / "cards" / "deeplab_cityscapes.toml"
HEIGHT, WIDTH, CLASSES = 512, 1024, 19
PIXELS = HEIGHT * WIDTH
LEVELS = ("labels", "confidence", "margin", "topk:3", "topk:5", "full")
FULL = Disclosure(CLASSES, 16)
TOP_2 = Disclosure(2, 8)
REVISION = "bench"
_CROP = (64, 128)  # of JSON, in the middle: the whole is ten million Python objects
_LOGITS_OF = 6  # images whose logits take the second part

_MOST_BYTES = {"labels": 0.07, "margin": 1.0}  # a pixel, mean of the images
_MOST_ENCODE_MS = {"labels": 1.0}
_MOST_FRAME_MS = 60.0

_PARTS = ("logits to frame, top-2", "of it: the head", "of it: disclose", "of it: encode")
_BESIDE = ("ONNX arg-max alone", "numpy, masked arg-max", "numpy, argpartition")

F32 = npt.NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Form:
    """One form of an answer: bytes a pixel of each image, and milliseconds of each repeat."""

    size: list[float] = field(default_factory=list)
    encode: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)

    def take(
        self, repeats: int, encode: Callable[[], bytes], decode: Callable[[bytes], Any], scale: float = 1.0
    ) -> bytes:
        """Measure one image, of which `1 / scale` was encoded; returns the bytes."""
        body = timed(repeats, self.encode, encode, scale)
        timed(repeats, self.decode, lambda: decode(body), scale)
        self.size.append(scale * len(body) / PIXELS)
        return body


def timed(repeats: int, into: list[float], work: Callable[[], T], scale: float = 1.0) -> T:
    """Run `work` `repeats` times, its milliseconds times `scale` into the list; returns what it last made."""
    made = work()  # once for the caches, not counted
    for _ in range(repeats):
        began = perf_counter()
        made = work()
        into.append(1000 * scale * (perf_counter() - began))
    return made


def street_images(count: int) -> list[UInt8]:
    """Street images uint8 [512, 1024, 3], evenly spaced over the folder; SystemExit where it is missing."""
    missing = [path for path in (MODEL, STREET) if not path.exists()]
    if missing:
        told = ", ".join(map(str, missing))
        raise SystemExit(f"REAL DATA MISSING: no {told}; set CORTE_TEST_DATA to the folder that holds them")
    found = sorted(STREET.iterdir())
    chosen = [found[i] for i in np.linspace(0, len(found) - 1, min(count, len(found))).astype(int)]
    size = (WIDTH, HEIGHT)
    return [
        np.asarray(Pillow.open(path).convert("RGB").resize(size, Pillow.Resampling.BILINEAR))
        for path in chosen
    ]


def sizes(images: Sequence[UInt8], repeats: int) -> dict[str, Form]:
    """Each level and each other form, over all images."""
    card = read_card(CARD)
    backend = load_backend(Source("onnx", MODEL, card), FULL, 1)
    names = [answer.name for answer in card.outputs]
    forms: dict[str, Form] = {}
    for pixels in images:
        classes, scores = everything(backend, pixels)
        for level in LEVELS:
            asked = Disclosure.parse(level, CLASSES)
            answer = disclose(classes, scores, FULL, asked, REVISION)
            form = forms.setdefault(level, Form())
            read = partial(decode_prediction, max_pixels=PIXELS)
            body = form.take(repeats, partial(encode_prediction, answer), read)
            assert np.array_equal(decode_prediction(body, max_pixels=PIXELS).classes, answer.classes)
        others(forms, classes[0], dense(classes, scores), names, repeats)
    return forms


def everything(backend: Backend, pixels: UInt8) -> tuple[UInt8, Float16]:
    """All classes and scores of an image."""
    classes, scores = backend.predict(pixels)
    assert scores is not None
    return classes, scores


def dense(classes: UInt8, scores: Float16) -> Float16:
    """Ranked planes [C, H, W] as maps in the order of ids."""
    maps = np.empty_like(scores)
    np.put_along_axis(maps, classes.astype(np.intp), scores, 0)
    return maps


def others(forms: dict[str, Form], labels: UInt8, maps: Float16, names: list[str], repeats: int) -> None:
    """The same image's answer in the forms that others send."""

    def form(name: str) -> Form:
        return forms.setdefault(name, Form())

    squeeze, expand = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()
    form("PNG of labels").take(repeats, lambda: png(labels), from_png)
    form("Hugging Face masks").take(repeats, lambda: masks(labels, names), from_masks)
    form("float16 maps").take(repeats, maps.tobytes, lambda body: np.frombuffer(body, np.float16))
    form("float16 maps, zstd 1").take(
        repeats,
        lambda: squeeze.compress(maps.tobytes()),
        lambda body: np.frombuffer(expand.decompress(body), np.float16),
    )
    top, left = (HEIGHT - _CROP[0]) // 2, (WIDTH - _CROP[1]) // 2
    crop = maps[:, top : top + _CROP[0], left : left + _CROP[1]]
    scale = PIXELS / (_CROP[0] * _CROP[1])
    form("JSON").take(1, lambda: json.dumps(numbers(crop)).encode(), json.loads, scale)
    if importlib.util.find_spec("orjson"):
        orjson: Any = importlib.import_module("orjson")
        form("JSON, orjson").take(1, lambda: orjson.dumps(numbers(crop)), orjson.loads, scale)


def numbers(maps: Float16) -> Any:
    """Nested lists at three decimals."""
    return np.round(maps.astype(np.float64), 3).tolist()


def png(plane: UInt8) -> bytes:
    """A grey PNG with Pillow's defaults."""
    buffer = io.BytesIO()
    Pillow.fromarray(plane).save(buffer, "PNG")
    return buffer.getvalue()


def from_png(body: bytes) -> UInt8:
    """A grey PNG read."""
    return np.asarray(Pillow.open(io.BytesIO(body)))


def masks(labels: UInt8, names: list[str]) -> bytes:
    """What Hugging Face's image-segmentation task answers: for each class that is there a mask of 0 and 255.

    JSON of score, label and base64 PNG, as huggingface.co/docs/inference-providers/tasks/image-segmentation.
    """
    entries = [
        {
            "score": 1.0,
            "label": names[index],
            "mask": base64.b64encode(png(np.where(labels == index, 255, 0).astype(np.uint8))).decode(),
        }
        for index in np.unique(labels)
    ]
    return json.dumps(entries).encode()


def from_masks(body: bytes) -> UInt8:
    """Masks back to one plane, numbered in their order."""
    plane = np.full((HEIGHT, WIDTH), 255, np.uint8)
    for index, entry in enumerate(json.loads(body)):
        plane[from_png(base64.b64decode(entry["mask"])) > 0] = index
    return plane


def full_logits(images: Sequence[UInt8]) -> list[F32]:
    """The model's logits float32 [1, 19, 512, 1024], from its own 513 x 513 by Pillow's bilinear filter."""
    spec = read_card(CARD).input
    session = one_thread(onnx.load(str(MODEL)))
    found = []
    for pixels in images:
        (raw,) = session.run(
            None, {session.get_inputs()[0].name: prepare(spec, Pillow.fromarray(pixels)).array}
        )
        planes = [
            Pillow.fromarray(plane).resize((WIDTH, HEIGHT), Pillow.Resampling.BILINEAR) for plane in raw[0]
        ]
        found.append(np.stack([np.asarray(plane, np.float32) for plane in planes])[None])
    return found


def one_thread(model: ModelProto) -> Any:
    """A session as the service makes it, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def graph(last: str, **attributes: Any) -> ModelProto:
    """A model of one node over full-size logits."""
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CLASSES, HEIGHT, WIDTH])
    kind, dims = (
        (TensorProto.FLOAT, [1, CLASSES, HEIGHT, WIDTH])
        if last == "Identity"
        else (TensorProto.INT64, [1, HEIGHT, WIDTH])
    )
    node = helper.make_node(last, ["logits"], ["answer"], **attributes)
    built = helper.make_graph([node], "wire", [logits], [helper.make_tensor_value_info("answer", kind, dims)])
    return helper.make_model(built, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def frames(images: Sequence[UInt8], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each repeat: logits to a frame of top-2 and its parts, and what it is compared with."""
    card = Card(name="wire", classes=read_card(CARD).classes, input=Input(height=HEIGHT, width=WIDTH))
    with TemporaryDirectory() as folder:
        onnx.save(graph("Identity"), path := Path(folder) / "identity.onnx")
        head = build(path, card, TOP_2, threads=1)
    arg_max = one_thread(graph("ArgMax", axis=1, keepdims=0))
    took: dict[str, list[float]] = {name: [] for name in (*_PARTS, *_BESIDE)}
    for logits in full_logits(images):
        classes = top_2(head, logits, repeats, took)
        beside(arg_max, logits, classes, repeats, took)
    return took


def top_2(head: OnnxBackend, logits: F32, repeats: int, took: dict[str, list[float]]) -> UInt8:
    """Logits to a frame as the service does it; returns the two classes uint8 [2, H, W]."""
    sent = Prepared(logits, (HEIGHT, WIDTH), (HEIGHT, WIDTH))
    for repeat in range(repeats + 1):
        marks = [perf_counter()]
        classes, scores = head.predict(sent)
        marks.append(perf_counter())
        answer = disclose(classes, scores, TOP_2, TOP_2, REVISION)
        marks.append(perf_counter())
        encode_prediction(answer)
        marks.append(perf_counter())
        if repeat:  # the first is for the caches
            for name, seconds in zip(_PARTS, [marks[-1] - marks[0], *np.diff(marks)], strict=True):
                took[name].append(1000 * float(seconds))
    return answer.classes


def beside(arg_max: Any, logits: F32, classes: UInt8, repeats: int, took: dict[str, list[float]]) -> None:
    """The same logits otherwise; what comes out is held against `classes`, up to ties."""
    plain, masked, parted = (took[name] for name in _BESIDE)
    best = timed(repeats, plain, lambda: arg_max.run(None, {"logits": logits})[0])
    assert np.array_equal(best[0], classes[0])
    for into, way in ((masked, by_arg_max), (parted, by_partition)):
        found, _ = timed(repeats, into, partial(way, logits[0]))
        assert (found == classes).mean() > 0.9999


def by_arg_max(logits: F32) -> tuple[UInt8, Float16]:
    """Top-2 of [C, H, W] by arg-max, masking it and arg-max again."""
    x = logits.copy()
    ids, values = [], []
    for _ in range(2):
        best = x.argmax(0, keepdims=True)
        ids.append(best[0])
        values.append(np.take_along_axis(x, best, 0)[0])
        np.put_along_axis(x, best, -np.inf, 0)
    return np.stack(ids).astype(np.uint8), probabilities(logits, np.stack(values))


def by_partition(logits: F32) -> tuple[UInt8, Float16]:
    """Top-2 of [C, H, W] by argpartition and a sort of the two."""
    ids = np.argpartition(logits, (CLASSES - 2, CLASSES - 1), axis=0)[:-3:-1]
    return ids.astype(np.uint8), probabilities(logits, np.take_along_axis(logits, ids, 0))


def probabilities(logits: F32, values: F32) -> Float16:
    """The soft-max of chosen values [K, H, W], the best first, as float16."""
    peak = values[0]
    found: Float16 = (np.exp(values - peak) / np.exp(logits - peak).sum(0)).astype(np.float16)
    return found


def verdict(found: float, most: float | None) -> str:
    """A bar beside its figure."""
    return "" if most is None else f" (at most {most:g}: {'met' if found <= most else 'MISSED'})"


def spread(values: Sequence[float]) -> str:
    """The tenth and the ninetieth percentile."""
    low, high = np.percentile(values, (10, 90))
    return f"{low:.2f} to {high:.2f}"


def report(forms: dict[str, Form], took: dict[str, list[float]], flags: argparse.Namespace, load: str) -> str:
    """Both tables, each figure beside its bar."""
    images = len(forms["labels"].size)
    lines = [
        f"# Wire and disclosure, {datetime.now(UTC).date()}",
        "",
        f"`python -m speed.wire --images {images} --repeats {flags.repeats}`, {processor()}, one core, "
        f"ONNX Runtime {onnxruntime.__version__}. Load average of the machine {load}.",
        *(["", flags.note] if flags.note else []),
        "",
        f"{HEIGHT} x {WIDTH}, {CLASSES} classes: DeepLab (Cityscapes) on {images} of CamVid's val images, "
        "resized from 480 x 360. The model computes 33 x 33 scores and enlarges them itself, so its maps are "
        "smooth: those of a sharper model weigh more. Bytes a pixel: mean and worst image, the bar is for "
        "the mean. Milliseconds: median over images and repeats, the tenth to the ninetieth percentile "
        "beside it.",
        "",
        *size_table(forms),
        "",
        "Levels: a `Prediction` to a frame and back, checks included. Masks: one for each class that is in "
        f"the image. JSON: nested lists at three decimals, {_CROP[0]} x {_CROP[1]} pixels in the middle "
        f"measured and scaled by {PIXELS // (_CROP[0] * _CROP[1])}"
        + ("." if "JSON, orjson" in forms else "; orjson is not installed here.")
        + " float16 maps: 19 scores a pixel in the order of ids.",
        "",
        f"From full-size logits (float32, {min(images, _LOGITS_OF)} images) to a frame of level {TOP_2}:",
        "",
        *frame_table(took),
        "",
        "Both numpy rows end in float16 scores of the two, without a frame.",
    ]
    return "\n".join(lines) + "\n"


def size_table(forms: dict[str, Form]) -> list[str]:
    """A line a form."""
    lines = [
        "| form | B/px, mean | worst | encode ms | 10 to 90 % | decode ms |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, form in forms.items():
        mean, encode = float(np.mean(form.size)), float(np.median(form.encode))
        lines.append(
            f"| {name} | {mean:.3f}{verdict(mean, _MOST_BYTES.get(name))} | {max(form.size):.3f} | "
            f"{encode:.2f}{verdict(encode, _MOST_ENCODE_MS.get(name))} | {spread(form.encode)} | "
            f"{np.median(form.decode):.2f} |"
        )
    return lines


def frame_table(took: dict[str, list[float]]) -> list[str]:
    """A line a step."""
    lines = ["| step | ms, median | 10 to 90 % |", "|---|--:|--:|"]
    for name, values in took.items():
        bar = _MOST_FRAME_MS if name == _PARTS[0] else None
        middle = float(np.median(values))
        lines.append(f"| {name} | {middle:.1f}{verdict(middle, bar)} | {spread(values)} |")
    return lines


def processor() -> str:
    """The processor's name, where the kernel tells it."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else "unknown processor"


def main() -> None:
    """Run as a program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--note", default="", help="a sentence for the report")
    parser.add_argument("--write", type=Path, default=None)
    flags = parser.parse_args()
    images = street_images(flags.images)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    before = os.getloadavg()[0]
    forms = sizes(images, flags.repeats)
    took = frames(images[:_LOGITS_OF], 4 * flags.repeats)
    text = report(forms, took, flags, f"{before:.1f} before, {os.getloadavg()[0]:.1f} after")
    print(text)
    if flags.write is not None:
        flags.write.write_text(text)


if __name__ == "__main__":
    main()
