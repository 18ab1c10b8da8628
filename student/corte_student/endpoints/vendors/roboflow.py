"""Roboflow, semantic segmentation: the Serverless API, dedicated deployments and servers of one's own alike.

    https://docs.roboflow.com/models/supported-models/roboflow-2
        predictions.segmentation_mask, a grey PNG of ids, and predictions.class_map, their names
    https://docs.roboflow.com/deploy/serverless/instance-segmentation/semantic-segmentation
        the picture goes as base64, the mask has the picture's size
    https://docs.roboflow.com/deployment/roboflow-cloud/serverless-api
        20 MB a request, and under /pricing the header x-model-id
    https://docs.roboflow.com/deployment/production-checklist
        402 and 423 are billing, 429 and 5xx pass
    https://github.com/roboflow/inference, inference/core/
        models/semantic_segmentation_base.py: confidence_mask, 8-bit grey, 255 times the softmax
        models/inference_models_adapters.py: -1, no class, becomes 255
        interfaces/http/routes/legacy.py: the parameters; `confidence` is 0.4 unless told otherwise
        interfaces/http/api_key_resolution.py: `Authorization: Bearer KEY`
        interfaces/http/error_handlers.py: {"message": ...} of every failure; 503 with Retry-After
    https://github.com/roboflow/inference, inference_models/.../roboflow/post_processing.py
        what is below the threshold, or beyond the model's crop, becomes background of confidence 0

Rule 1: classes are known by their names in class_map, never by their ids. Rule 2: the lowest threshold is
asked for, and what is still below it is void: the background there is nobody's opinion. Rule 3: what is sent
is not to be collected for training (`disable_active_learning`).
"""

import base64
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from pydantic import SecretStr

from corte_protocol import VOID, Disclosure, InvalidValue, MalformedFrame, Prediction
from corte_protocol.types import VOID_NAME, UInt8
from corte_student.endpoints import masks
from corte_student.endpoints.answers import Received, Sent
from corte_student.endpoints.config import Strict, TeacherConfig, checked
from corte_student.endpoints.dialect import MAX_JSON, Call, Dialect, Reply, Verdict
from corte_student.endpoints.vendors.described import found, parsed
from corte_student.endpoints.vendors.spoken import Spoken, bearer, limits_of
from corte_student.errors import BrokeContract, Refused, SettingsError

_SOURCE: Final = "--teacher-config [roboflow]"
_MODEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_QUERY: Final = "confidence=0&disable_active_learning=true"
_VERSION: Final = "x-model-id"
_MAX_BODY: Final = 20_000_000
_MAX_LEGACY: Final = 5_000_000
_LEGACY: Final = re.compile(r"(?:segment|outline|detect)\.roboflow\.com")
_LEAST_PIXELS: Final = 1 << 24
_UNMAPPED: Final = 255
_OF_EVERY_IMAGE: Final = re.compile(
    r"service misconfiguration|model package is broken|could not negotiate model package|"
    r"model configuration related to pre- or post-processing"
)


class Options(Strict):
    """`[roboflow]` in --teacher-config. `confidence`: every answer holds a confidence_mask.

    A class of `void_labels` is void, so is any unknown one with `ignore_unknown`.
    """

    confidence: bool = True
    void_labels: tuple[str, ...] = ()
    ignore_unknown: bool = False


@dataclass(frozen=True)
class Roboflow(Dialect):
    """One version of one model."""

    name: ClassVar[str] = "roboflow"
    version: ClassVar[int] = 1
    kept_headers: ClassVar[tuple[str, ...]] = (_VERSION,)

    url: str
    options: Options

    def call(self, image: Sent, level: Disclosure) -> Call:
        """Base64 in the body, as the documentation's `curl -d` sends it."""
        # two PNGs in base64 that hardly compress, and the names
        most = min((4 << 20) + 8 * image.height * image.width, 4 * MAX_JSON)
        headers = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}
        return Call("POST", f"{self.url}?{_QUERY}", most, headers, base64.b64encode(image.body))

    def judge(self, reply: Reply) -> Verdict | None:
        """A mask with names, or why there is none."""
        return _no_mask(reply) if 200 <= reply.status < 300 else _refusal(reply)

    def stated_version(self, received: Received) -> str | None:
        """The model that answered, with its version."""
        return received.headers.get(_VERSION) or None

    def read(self, received: Received, height: int, width: int, need: Disclosure) -> Prediction:
        """Labels by name, with the confidence of each pixel where the options say that it comes."""
        predictions = found("predictions", parsed(received.body))
        if not isinstance(predictions, dict):
            raise MalformedFrame("the answer holds no predictions")
        stored = _plane(predictions.get("segmentation_mask"), height, width)
        ids = masks.ids_from_indices(stored, self._table(predictions.get("class_map")))
        void = ids == VOID
        confidence = None
        if self.options.confidence:
            confidence = _confidence(predictions, height, width)
            void |= confidence == 0
        ids[void] = self.classes.index(VOID_NAME)
        return Prediction(ids[None], None if confidence is None else confidence[None], "unread")

    def _table(self, class_map: Any) -> dict[int, int]:
        """Stored ids to class ids. The map names every class of the model, so none is missing later."""
        if not isinstance(class_map, dict):
            raise MalformedFrame("the answer holds no class_map")
        table, unknown = {_UNMAPPED: VOID}, list[str]()
        for text, name in class_map.items():
            if not (re.fullmatch(r"[0-9]{1,3}", text) and int(text) <= _UNMAPPED and isinstance(name, str)):
                raise MalformedFrame("class_map does not map ids from 0 to 255 to names")
            table[int(text)] = VOID
            if name in self.options.void_labels:
                continue
            if name in self.classes:
                table[int(text)] = self.classes.index(name)
            else:
                unknown.append(name)
        if unknown and not self.options.ignore_unknown:
            told = ", ".join(repr(name[:64]) for name in unknown[:8])
            raise InvalidValue(
                f"the model names {told}: add it to classes, or to void_labels of [roboflow], "
                "in --teacher-config"
            )
        return table


def build(url: str, config: TeacherConfig, key: SecretStr | None) -> Spoken:
    """What is spoken at https://serverless.roboflow.com/PROJECT/VERSION. Raises SettingsError."""
    options = checked(Options, config.options, _SOURCE)
    classes, colors = config.listed("roboflow")
    if VOID_NAME in classes:
        raise SettingsError(f"classes: {VOID_NAME!r} is added where it is needed: leave it out")
    target = _target(url, config.model)
    legacy = _LEGACY.fullmatch((urlsplit(url).hostname or "").lower())
    # as base64, four bytes are sent for three
    limits = limits_of(config, (_MAX_LEGACY if legacy else _MAX_BODY) * 3 // 4)
    level = Disclosure(1, 8 if options.confidence else 0)
    dialect = Roboflow(
        target, (*classes, VOID_NAME), (*colors, (0, 0, 0)), level, limits, url=target, options=options
    )
    return Spoken(dialect, bearer(key))


def _target(url: str, model: str | None) -> str:
    """The model's URL, whether --teacher-url has it or `model` names it."""
    steps = [step for step in urlsplit(url).path.split("/") if step]
    if model is None:
        if len(steps) < 2 or not _MODEL.fullmatch("/".join(steps[-2:])):
            raise SettingsError(
                "--teacher-url of kind roboflow is https://serverless.roboflow.com/PROJECT/VERSION, "
                'or write model = "project/version" into --teacher-config'
            )
        return url
    if len(steps) >= 2:
        raise SettingsError("--teacher-url names a model, and --teacher-config another: keep one")
    if not _MODEL.fullmatch(model):
        raise SettingsError(f'model = {model!r} is none of Roboflow\'s: write "project/version"')
    return f"{url}/{model}"


def _plane(text: Any, height: int, width: int) -> UInt8:
    """A grey PNG in base64 on the image's grid, uint8 [H, W]."""
    data = masks.decode_text(text, max_bytes=MAX_JSON)
    pixels = masks.decode_png(data, max_pixels=max(4 * height * width, _LEAST_PIXELS))
    if pixels.ndim != 2:
        raise InvalidValue("a mask in colours where a grey one is expected")
    rows, columns = pixels.shape
    # the documentation has it of the image's size: let rounding pass, not another picture
    if abs(columns * height - rows * width) > max(height, width):
        raise InvalidValue(f"a mask of {rows} x {columns} for an image of {height} x {width}")
    return masks.resized(pixels, height, width)


def _confidence(predictions: dict[str, Any], height: int, width: int) -> UInt8:
    """The confidence of each pixel, uint8 [H, W] in units of 1/255, 0 where the model has no opinion."""
    remedy = "write confidence = false into [roboflow] of --teacher-config"
    text = predictions.get("confidence_mask")
    if text is None:
        raise InvalidValue(f"the answer holds no confidence_mask: {remedy}")
    confidence = _plane(text, height, width)
    if int(confidence.max()) == 1:
        raise InvalidValue(f"a confidence_mask of zeros and ones says nothing: {remedy}")
    return confidence


def _no_mask(reply: Reply) -> Verdict | None:
    """What a success is, if not a mask with the names of its classes."""
    try:
        predictions = found("predictions", parsed(reply.body))
    except MalformedFrame:
        predictions = None
    if isinstance(predictions, list):
        why = "finds objects: check that the model is one of semantic segmentation"
        return Verdict(why, BrokeContract, billed=True)
    mask, names = found("[segmentation_mask, class_map]", predictions) or (None, None)
    if isinstance(mask, str) and isinstance(names, dict):
        return None
    why = "answered with something that is no prediction: check --teacher-url and --teacher-kind"
    return Verdict(why, BrokeContract, billed=True)


def _refusal(reply: Reply) -> Verdict | None:
    """What the ordinary table would misread; the text is looked at, and never repeated."""
    status, text = reply.status, reply.body[:4096].decode("utf-8", "replace").lower()
    if status == 400 and "api key is missing" in text:
        return Verdict(
            "found no key (400): set CORTE_TEACHER_KEY; a server of your own must be new enough to take it "
            "from the Authorization header",
            Refused,
        )
    if status == 400 and "invalid model id" in text:
        return Verdict("knows no such model (400): it is PROJECT/VERSION in --teacher-url", Refused)
    if status == 403:
        return Verdict(
            "does not let this key ask (403): check its scopes, and that the model is in its workspace",
            Refused,
        )
    if status == 404:
        return Verdict(
            "knows no such model (404): check project and version in --teacher-url, and the key's workspace",
            Refused,
        )
    if status == 423:
        return Verdict("is closed until a bill is paid (423): see the plan at Roboflow", Refused)
    if status == 500 and _OF_EVERY_IMAGE.search(text):
        return Verdict("cannot run this model (500): train or upload another version of it", Refused)
    return None
