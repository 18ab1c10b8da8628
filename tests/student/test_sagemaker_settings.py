"""SageMaker's adapter without a network: the signature's region, settings, identities, damaged answers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from corte_protocol import Disclosure, ProtocolError
from corte_protocol.types import VOID_NAME
from corte_student.endpoints.answers import Received, Sent
from corte_student.endpoints.config import config_from
from corte_student.endpoints.connecting import guess_kind
from corte_student.endpoints.vendors import spoken_by
from corte_student.errors import SettingsError
from id_pictures import png
from pictures import make_picture
from sagemaker_wire import HOST, environment, likelihoods, recordio
from student.dialect_contract import CLASSES, KEY, truth


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the environment."""
    environment(monkeypatch, tmp_path)


async def test_a_picture_for_ones_own_container_keeps_its_type() -> None:
    """Only the built-in algorithm is given the generic one."""
    options = {"answer": {"format": "image", "void_ids": [255]}}
    config = config_from({"classes": ["a", "b"], "sagemaker": options}, "t")
    dialect = spoken_by("sagemaker", f"{HOST}/endpoints/x", config, None).dialect
    call = dialect.call(Sent(make_picture(1).body, "image/png", 12, 16), Disclosure(1, 0))
    assert call.headers["Content-Type"] == "image/png"
    assert dialect.classes == ("a", "b", VOID_NAME)
    labels = np.array([[0, 1, 255]], np.uint8)
    answer = dialect.read(Received("sagemaker", 1, "image/png", png(labels)), 1, 3, Disclosure(1, 0))
    assert answer.labels.tolist() == [[0, 1, 2]]


@pytest.fixture(scope="module")
def dialects() -> Iterator[dict[str, Any]]:
    """The two dialects, without a network."""
    given_options = {"png": Disclosure(1, 0), "protobuf": Disclosure(3, 16)}
    yield {
        accept: spoken_by(
            "sagemaker",
            f"{HOST}/endpoints/streets",
            config_from({"classes": list(CLASSES), "sagemaker": {"accept": accept}}, "t"),
            None,
        ).dialect
        for accept in given_options
    }


@given(data=st.data())
def test_damaged_answers_never_pass_for_predictions_of_another_shape(
    dialects: Any, data: st.DataObject
) -> None:
    """Whatever a byte changes: a prediction of the image's size, or a ProtocolError."""
    accept = data.draw(st.sampled_from(["png", "protobuf"]))
    labels = truth(make_picture(1, height=3, width=4).pixels)
    whole = png(labels, palette=True) if accept == "png" else recordio(likelihoods(labels))
    at = data.draw(st.integers(0, len(whole) - 1))
    body = whole[:at] + data.draw(st.binary(max_size=3)) + whole[at + data.draw(st.integers(0, 3)) :]
    dialect = dialects[accept]
    received = Received("sagemaker", 1, "", body)
    try:
        answer = dialect.read(received, 3, 4, dialect.level)
    except ProtocolError:
        return
    assert answer.classes.shape[1:] == (3, 4)
    assert answer.disclosure.allows(dialect.level)


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("runtime.sagemaker.us-east-1.amazonaws.com", "us-east-1"),
        ("runtime-fips.sagemaker.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("runtime.sagemaker.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("runtime.sagemaker.eu-west-1.api.aws", "eu-west-1"),
        ("vpce-1a-2b.runtime.sagemaker.eu-west-1.vpce.amazonaws.com", "eu-west-1"),
    ],
)
async def test_the_region_is_read_from_the_host(host: str, region: str) -> None:
    """It ends up in the scope of the signature, with and without /invocations in the URL."""
    for suffix in ("", "/invocations"):
        config = config_from({"classes": list(CLASSES), "sagemaker": {}}, "t")
        spoken = spoken_by("sagemaker", f"https://{host}/endpoints/streets{suffix}", config, None)
        picture = make_picture(1)
        call = spoken.dialect.call(Sent(picture.body, "image/png", 12, 16), Disclosure(1, 0))
        assert call.url == f"https://{host}/endpoints/streets/invocations"
        assert f"/{region}/sagemaker/aws4_request" in (await spoken.signer.sign(call))["Authorization"]


def test_the_host_alone_tells_the_kind() -> None:
    """No --teacher-kind is needed."""
    assert guess_kind(f"{HOST}/endpoints/streets") == "sagemaker"


def test_another_variant_is_another_teacher() -> None:
    """Answers of two variants are not mixed in one ledger; the path's ending makes no difference."""
    identities = [
        spoken_by("sagemaker", url, config_from({"classes": ["a", "b"], "sagemaker": options}, "t"), None)
        for url, options in (
            (f"{HOST}/endpoints/x", {}),
            (f"{HOST}/endpoints/x/invocations", {}),
            (f"{HOST}/endpoints/x", {"target_variant": "blue"}),
            (f"{HOST}/endpoints/y", {}),
        )
    ]
    assert identities[0].dialect.identity == identities[1].dialect.identity
    assert len({one.dialect.identity for one in identities}) == 3


def test_limits_are_the_documented_ones_unless_the_user_says_otherwise() -> None:
    """BodyBlob: 6,291,456 bytes."""
    plain: dict[str, object] = {"classes": ["a", "b"], "sagemaker": {}}
    for told, most in (({}, 6_291_456), ({"max_body_bytes": 25_000_000}, 25_000_000)):
        spoken = spoken_by("sagemaker", f"{HOST}/endpoints/x", config_from({**plain, **told}, "t"), None)
        assert spoken.dialect.limits.max_body_bytes == most


@pytest.mark.parametrize(
    ("url", "config", "words"),
    [
        (f"{HOST}/endpoints/x", {"sagemaker": {}}, "classes"),
        (f"{HOST}/endpoints/x", {"classes": ["a", "b"], "sagemaker": {"acept": "png"}}, "acept"),
        (f"{HOST}/endpoints/x", {"classes": ["a", "b"], "sagemaker": {"accept": "json"}}, "accept"),
        (
            f"{HOST}/endpoints/x",
            {"classes": ["a", "b"], "sagemaker": {"accept": "png", "answer": {"format": "image"}}},
            "keep one",
        ),
        (
            f"{HOST}/endpoints/x",
            {"classes": ["a", "b"], "sagemaker": {"target_variant": "a b"}},
            "target_variant",
        ),
        (
            f"{HOST}/endpoints/x",
            {"classes": ["a", "b"], "sagemaker": {"custom_attributes": "a\nb"}},
            "custom",
        ),
        (f"{HOST}/endpoints/x", {"classes": ["a", "b"], "sagemaker": {"region": "../x"}}, "region"),
        (f"{HOST}/models/x", {"classes": ["a", "b"], "sagemaker": {}}, "/endpoints/NAME"),
        ("https://gateway.example.com/endpoints/x", {"classes": ["a", "b"], "sagemaker": {}}, "region"),
    ],
)
def test_wrong_settings_name_the_key(url: str, config: dict[str, object], words: str) -> None:
    """Before anything is sent."""
    with pytest.raises(SettingsError, match=words):
        spoken_by("sagemaker", url, config_from(config, "t"), None)


def test_a_key_that_would_not_be_used_is_refused() -> None:
    """CORTE_TEACHER_KEY is of no use here, and its text is not repeated."""
    config = config_from({"classes": ["a", "b"], "sagemaker": {}}, "t")
    with pytest.raises(SettingsError, match="unset CORTE_TEACHER_KEY") as failure:
        spoken_by("sagemaker", f"{HOST}/endpoints/x", config, SecretStr(KEY))
    assert KEY not in str(failure.value)
