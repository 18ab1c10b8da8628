"""The Open Inference Protocol v2 over HTTP: KServe, Triton, MLServer, OpenVINO Model Server, TorchServe, and
the routes of that protocol in this project's own service.

    https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
        routes, JSON, {"error": text}
    https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_binary_data.html
        binary data behind the JSON
    https://docs.openvino.ai/2024/ovms_docs_binary_input_kfs.html
        OpenVINO takes an encoded picture, BYTES [1], for any input that is an image
    https://docs.seldon.ai/mlserver/user-guide/content-type
        MLServer's `base64` for bytes in JSON

Rule 1: one free question, the model's metadata, says what goes in and comes out (oip_model);
`[openinference]` in --teacher-config says what it leaves open, and wins over it (oip_options). Rule 2: a
picture is resized to a fixed input size bilinearly (cv2, oip_pictures), and scores are resized back
bilinearly before the best class is chosen (oip_planes). Rule 3: answers are read in JSON or binary form,
whatever was asked. Rule 4: a status alone tells little, so errors are told by their text (oip_failures).
"""

import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final
from urllib.parse import quote, unquote

from pydantic import SecretStr

from corte_protocol import Disclosure, InvalidValue, Limits, MalformedFrame, Prediction
from corte_protocol.types import MAX_CLASSES
from corte_student.endpoints.answers import MAX_STORED, Received, Sent
from corte_student.endpoints.config import TeacherConfig, checked
from corte_student.endpoints.dialect import Call, Dialect, Reply, Rgb, Verdict
from corte_student.endpoints.palettes import colors_for
from corte_student.endpoints.tensors import LENGTH_HEADER, pack, unpack
from corte_student.endpoints.vendors.openinference.failures import failure
from corte_student.endpoints.vendors.openinference.model import Model, Spec, agree, choose, read_metadata
from corte_student.endpoints.vendors.openinference.options import WHERE, Options
from corte_student.endpoints.vendors.openinference.pictures import Feed
from corte_student.endpoints.vendors.openinference.planes import CLASSES, SCORES, Reading
from corte_student.endpoints.vendors.spoken import Spoken, bearer, limits_of
from corte_student.errors import BrokeContract, SettingsError

_LENGTH: Final = LENGTH_HEADER.lower()
_MODEL_PATH: Final = re.compile(r"(.*)/v2/models/([^/]+)(/versions/[^/]+)?(?:/infer)?")
_VERSION: Final = re.compile(rb'"model_version"\s*:\s*"([^"\\]{1,256})"')
_HEAD: Final = 1 << 16  # every server writes the version before the tensors
_MAX_BODY: Final = 64 << 20
"""Triton's default `--http-max-input-size`; the others allow more."""
_BINARY_PLATFORM: Final = re.compile(
    r"corte|OpenVINO|openvino|ensemble|python|dali|(onnxruntime|tensorrt|pytorch|tensorflow)(_\w+)?"
)
"""What our own service, OpenVINO Model Server and Triton (a platform's or a backend's name) call theirs: all
know binary data.
"""
_ROOM: Final = 1 << 21  # pixels that a model of unknown output size may answer for a small picture
_NUMBER: Final = 26  # characters of one number in JSON
_UNKNOWN: Final = tuple(f"class {i}" for i in range(MAX_CLASSES - 1))


@dataclass(frozen=True)
class OpenInference(Dialect):
    """One model at `url`. What comes after `config` is learned from its metadata."""

    name: ClassVar[str] = "openinference"
    version: ClassVar[int] = 1
    kept_headers: ClassVar[tuple[str, ...]] = (_LENGTH,)

    url: str
    options: Options
    config: TeacherConfig
    feed: Feed | None = None
    asked: tuple[str, ...] = ()
    binary: bool = False
    room: int = _ROOM

    def about(self) -> Call:
        """The model's metadata."""
        return Call("GET", self.url, 1 << 20)

    def learned(self, reply: Reply) -> "OpenInference":
        """Raises SettingsError for what the metadata leaves open, BrokeContract where it is none."""
        try:
            model = read_metadata(reply.body)
            names, colors = self._classes(model)
            level, asked = self._outputs(model, len(names))
        except (MalformedFrame, InvalidValue) as exc:
            raise BrokeContract(
                f"{self.url} answered with something that is no metadata of a model: check --teacher-url"
            ) from exc
        options = self.options
        feed = Feed.of(self._input(model), options.scaling)
        binary = feed.datatype == "FP16" or bool(_BINARY_PLATFORM.fullmatch(model.platform))
        binary = binary if options.binary == "auto" else options.binary
        if model.own and level.prob_bits == 16 and not binary:
            raise SettingsError(f"the service has no FP16 in JSON: take `binary` out of {WHERE}")
        fixed = feed.fixed
        return replace(
            self,
            classes=names,
            colors=colors,
            level=level,
            limits=self._limits(model, feed, binary=binary),
            feed=feed,
            asked=asked,
            binary=binary,
            room=_ROOM if fixed is None else fixed[0] * fixed[1],
        )

    def call(self, image: Sent, level: Disclosure) -> Call:
        """The picture as the one input, at the level that every answer holds."""
        assert self.feed is not None, "the endpoint learns before it asks"
        document: dict[str, Any] = {}
        if self.asked:
            wanted = {"parameters": {"binary_data": True}} if self.binary else {}
            document["outputs"] = [{"name": name, **wanted} for name in self.asked]
        packed = pack(document, "inputs", [self.feed.tensor(image)], binary=self.binary)
        planes = len(self.classes) if self.level.prob_bits else 1
        most = planes * max(image.height * image.width, self.room) * (8 if self.binary else _NUMBER)
        return Call(
            "POST", f"{self.url}/infer", min(most + (1 << 20), MAX_STORED), packed.headers, packed.body
        )

    def judge(self, reply: Reply) -> Verdict | None:
        """By the form of what should be an answer, by the text of an error."""
        return failure(reply, reply.headers.get(_LENGTH))

    def stated_version(self, received: Received) -> str | None:
        """`model_version`; some leave it out."""
        found = _VERSION.search(received.body, 0, _HEAD)
        return None if found is None else found[1].decode("utf-8", "replace")

    def read(self, received: Received, height: int, width: int, need: Disclosure) -> Prediction:
        """Scores of every class, resized to the picture, or labels; see oip_planes."""
        message = unpack(received.body, received.headers.get(_LENGTH), "outputs")
        options = self.options
        count = None if self.classes == _UNKNOWN else len(self.classes)
        reading = Reading(options.output, options.answer, options.layout, options.activation, count)
        # an element is a byte at least
        return reading.read(message, height, width, need, len(received.body))

    def _classes(self, model: Model) -> tuple[tuple[str, ...], tuple[Rgb, ...]]:
        stated = model.classes()
        if stated is not None and self.config.class_names is None:
            return stated
        names, colors = self.config.listed(self.name)
        if stated is not None and len(stated[0]) != len(names):
            raise SettingsError(
                f"the model has {len(stated[0])} classes, and {len(names)} are named: "
                "take `classes` out of --teacher-config, or correct it"
            )
        return names, colors

    def _input(self, model: Model) -> Spec:
        options = self.options
        specs = model.inputs
        if model.own and options.input is None:
            # our own service takes one of two: the encoded picture is the smaller
            specs = tuple(spec for spec in specs if spec.datatype == "BYTES")
        stated = choose(specs, options.input, "input")
        if stated is None:
            if options.input is None or options.datatype is None or options.shape is None:
                raise SettingsError(
                    f"the model does not say what goes in: write `input`, `datatype` and `shape` into {WHERE}"
                )
            return Spec(options.input, options.datatype, options.shape)
        shape = stated.shape
        if options.datatype == "BYTES" != stated.datatype:
            shape = (1,)  # an image's input at OpenVINO Model Server: the metadata is that of the pixels
        return Spec(stated.name, options.datatype or stated.datatype, options.shape or shape)

    def _outputs(self, model: Model, classes: int) -> tuple[Disclosure, tuple[str, ...]]:
        """The level of every answer, and the outputs to ask for; none where no name is known."""
        options = self.options
        if model.own and options.output is None:
            held = tuple(spec.name for spec in model.outputs if spec.name in (CLASSES, SCORES))
            return model.own_level(classes), held
        stated = choose(model.outputs, options.output, "output")
        answer = options.answer
        if stated is not None:
            answer = answer or ("scores" if stated.floats else "labels")
            agree(stated, answer, classes, options.layout)
        if answer is None:
            raise SettingsError(
                f'the model does not say what comes out: write `answer = "scores"` or "labels" into {WHERE}'
            )
        name = options.output if stated is None else stated.name
        level = Disclosure(classes, 16) if answer == "scores" else Disclosure(1, 0)
        return level, () if name is None else (name,)

    def _limits(self, model: Model, feed: Feed, *, binary: bool) -> Limits:
        if (own := model.own_limits()) is not None:
            return limits_of(self.config, *own)
        weight = feed.pixel_bytes(binary=binary)
        if not weight or feed.fixed is not None:
            return limits_of(self.config, _MAX_BODY)
        return limits_of(self.config, _MAX_BODY, _MAX_BODY // weight)


def build(url: str, config: TeacherConfig, key: SecretStr | None) -> Spoken:
    """What is spoken at URL/v2/models/NAME[/versions/V], or at URL with `model` in the config.

    Raises SettingsError.
    """
    options = checked(Options, config.options, "--teacher-config [openinference]")
    model = _model_url(url, config.model)
    # until the model was asked nothing is known, and what was stored is read all the same
    names, colors = _UNKNOWN, colors_for(_UNKNOWN)
    if config.class_names is not None:
        names, colors = config.listed("openinference")
    limits = limits_of(config, _MAX_BODY)
    return Spoken(
        OpenInference(model, names, colors, Disclosure(1, 0), limits, model, options, config), bearer(key)
    )


def _model_url(url: str, model: str | None) -> str:
    found = _MODEL_PATH.fullmatch(url)
    if found is None:
        if model is None:
            raise SettingsError(
                "which model? --teacher-url is URL/v2/models/NAME, or `model` stands in --teacher-config"
            )
        return f"{url.removesuffix('/v2')}/v2/models/{quote(model, safe='')}"
    base, name, version = found.groups()
    if model is not None and model != unquote(name):
        raise SettingsError(
            f"--teacher-url names the model {unquote(name)!r}, --teacher-config {model!r}: keep one"
        )
    return f"{base}/v2/models/{name}{version or ''}"
