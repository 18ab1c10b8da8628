"""Roboflow, semantic segmentation: the serverless cloud, dedicated deployments, a self-hosted server.

    https://docs.roboflow.com/deploy/serverless/instance-segmentation/semantic-segmentation
    https://docs.roboflow.com/deployment/roboflow-cloud/serverless-api.md         (20 MB a file)
    https://docs.roboflow.com/deployment/production-checklist                     (402 and 423: plan limits)
    https://github.com/roboflow/inference, core/entities/responses/inference.py
        predictions: segmentation_mask, class_map, confidence_mask

Rule 1: ids count in the answer's own `class_map`; its names are what `classes` must list. Rule 2: the
confidence of the best class comes with the answer, pixel by pixel; an answer without it is an error unless
`confidence = false`. Rule 3: the key goes into the Authorization header, never into the URL, whatever the
examples show. Rule 4: `confidence=0` is asked for, or pixels below 0.4 would become background.
"""

import base64
from typing import Any, ClassVar, Final

import numpy as np
from pydantic import SecretStr

from corte_protocol import Disclosure, InvalidValue, MalformedFrame, Prediction
from corte_protocol.types import VOID_NAME, UInt8
from corte_student.endpoints import masks
from corte_student.endpoints.answers import Received, Sent
from corte_student.endpoints.config import Strict, TeacherConfig, checked
from corte_student.endpoints.dialect import MAX_JSON, Call, Dialect, Reply, Verdict
from corte_student.endpoints.vendors.described import NO_PREDICTION, found, parsed
from corte_student.endpoints.vendors.spoken import Spoken, bearer, limits_of
from corte_student.errors import Refused, SettingsError

_SOURCE: Final = "--teacher-config [roboflow]"
_MAX_FILE: Final = 20 << 20
_QUERY: Final = "?confidence=0&disable_active_learning=true"
_MOST_CLASSES: Final = 256


class Options(Strict):
    """`confidence`: answers carry one for each pixel. `ignore_unknown`: what `classes` does not list is
    void.
    """

    confidence: bool = True
    ignore_unknown: bool = False


class Roboflow(Dialect):
    """POST the file in base64; a mask of ids, their names, and a mask of confidence come back."""

    name: ClassVar[str] = "roboflow"
    version: ClassVar[int] = 1
    kept_headers: ClassVar[tuple[str, ...]] = ("x-model-id",)

    def call(self, image: Sent, level: Disclosure) -> Call:
        """The file as base64 text, as the documentation's curl sends it."""
        most = min((4 << 20) + 8 * image.height * image.width, MAX_JSON)
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        return Call("POST", self.identity + _QUERY, most, headers, base64.b64encode(image.body))

    def judge(self, reply: Reply) -> Verdict | None:
        """423 is a limit of the plan; a success must hold a mask and its names."""
        if reply.status == 423:
            return Verdict(
                "is locked by a limit of the plan (423): see the workspace's billing page", Refused
            )
        if not 200 <= reply.status < 300:
            return None
        try:
            document = parsed(reply.body)
        except MalformedFrame:
            return NO_PREDICTION
        mask, names = found(_MASK, document), found(_NAMES, document)
        return None if isinstance(mask, str) and isinstance(names, dict) else NO_PREDICTION

    def stated_version(self, received: Received) -> str | None:
        """The model's id, with the version of its training."""
        return received.headers.get("x-model-id") or None

    def read(self, received: Received, height: int, width: int, need: Disclosure) -> Prediction:
        """Ids through `class_map` to classes by name; both masks nearest on the image's grid."""
        document = parsed(received.body)
        stored = _plane(found(_MASK, document), "segmentation_mask", height, width)
        names = found(_NAMES, document)
        if not isinstance(names, dict) or len(names) > _MOST_CLASSES:
            raise MalformedFrame("the answer's class_map is no map of at most 256 classes")
        table = {int(i): self._place(names.get(str(int(i)))) for i in np.unique(stored)}
        labels = masks.resized(masks.ids_from_indices(stored, table), height, width)
        if self.level.prob_bits == 0:
            return Prediction(labels[None], None, "unread")
        shares = found(_CONFIDENCE, document)
        if shares is None:
            raise InvalidValue(
                "the answer holds no confidence_mask: write confidence = false below [roboflow]"
            )
        confidence = masks.resized(_plane(shares, "confidence_mask", height, width), height, width)
        return Prediction(labels[None], confidence[None], "unread")

    def _place(self, name: Any) -> int:
        """The id of a class by its name."""
        if not isinstance(name, str):
            raise InvalidValue("the answer's mask holds an id that its class_map does not name")
        if name in self.classes:
            return self.classes.index(name)
        if VOID_NAME in self.classes:
            return self.classes.index(VOID_NAME)
        raise InvalidValue(f"the answer names the class {name[:64]!r}: add it to classes in --teacher-config")


_MASK: Final = "predictions.segmentation_mask"
_NAMES: Final = "predictions.class_map"
_CONFIDENCE: Final = "predictions.confidence_mask"


def build(url: str, config: TeacherConfig, key: SecretStr | None) -> Spoken:
    """What is spoken at https://serverless.roboflow.com/PROJECT/VERSION. Raises SettingsError."""
    options = checked(Options, config.options, _SOURCE)
    if config.model is not None:
        url = f"{url}/{config.model}"
    if "roboflow.com" in url and url.count("/") < 4:
        raise SettingsError("--teacher-url: give https://serverless.roboflow.com/PROJECT/VERSION")
    classes, colors = config.listed("roboflow")
    if options.ignore_unknown:
        classes, colors = (*classes, VOID_NAME), (*colors, (0, 0, 0))
    level = Disclosure(1, 8 if options.confidence else 0)
    dialect = Roboflow(url, classes, colors, level, limits_of(config, _MAX_FILE))
    return Spoken(dialect, bearer(key))


def _plane(value: Any, name: str, height: int, width: int) -> UInt8:
    """A grey PNG in base64, uint8 [h, w]."""
    if not isinstance(value, str):
        raise MalformedFrame(f"the answer holds no {name}")
    data = masks.decode_text(value, max_bytes=MAX_JSON)
    plane = masks.decode_png(data, max_pixels=max(4 * height * width, 1 << 24))
    if plane.ndim != 2:
        raise MalformedFrame(f"the {name} is no grey PNG")
    return plane
