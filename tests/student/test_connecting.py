"""A URL, a kind and a config become an endpoint; what is wrong with them is said before anything is sent."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from corte_student.endpoints import Access, connect, guess_kind
from corte_student.endpoints.config import KINDS, config_from, read_config
from corte_student.endpoints.connecting import kind_of
from corte_student.endpoints.corte import CorteEndpoint
from corte_student.endpoints.foreign import ForeignEndpoint
from corte_student.errors import SettingsError

EVIL = "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("https://router.huggingface.co/hf-inference/models/nvidia/segformer-b0", "huggingface"),
        ("https://abc123.eu-west-1.aws.endpoints.huggingface.cloud", "huggingface"),
        ("https://runtime.sagemaker.eu-central-1.amazonaws.com/endpoints/seg/invocations", "sagemaker"),
        ("https://europe-west4-aiplatform.googleapis.com/v1/projects/p", "vertex"),
        ("https://ep.westeurope.inference.ml.azure.com/score", "azureml"),
        ("https://serverless.roboflow.com/city/3", "roboflow"),
        ("https://api.replicate.com/v1", "replicate"),
        ("http://triton:8000/v2/models/segmenter", "openinference"),
        ("http://127.0.0.1:8000", None),
        ("https://huggingface.co.evil.example/models", None),
        ("https://evil.example/runtime.sagemaker.eu-central-1.amazonaws.com", None),
        ("https://api.replicate.com.evil.example", None),
    ],
)
def test_a_kind_is_guessed_only_where_the_url_can_mean_nothing_else(url: str, kind: str | None) -> None:
    """Hosts are matched whole: a vendor's name elsewhere in a URL does not bring it the key's dialect."""
    assert guess_kind(url) == kind
    assert kind_of(Access(url)) == (kind or "corte")


def test_what_the_user_says_goes_before_the_guess() -> None:
    """The flag wins over the config, the config over the URL."""
    config = config_from({"kind": "openinference"}, "t.toml")
    url = "https://api.replicate.com/v1"
    assert kind_of(Access(url, config=config)) == "openinference"
    assert kind_of(Access(url, kind="custom", config=config)) == "custom"


def test_an_unknown_kind_lists_those_there_are() -> None:
    """The message names every kind, and the way for code of one's own."""
    with pytest.raises(SettingsError) as failure:
        kind_of(Access(EVIL, kind="hugingface"))
    assert all(kind in str(failure.value) for kind in (*KINDS, "package.module:factory"))


def test_code_from_outside_is_named_on_the_command_line_only() -> None:
    """A config cannot choose what runs."""
    with pytest.raises(SettingsError, match="kind"):
        config_from({"kind": "my_endpoint:build"}, "t.toml")
    with pytest.raises(SettingsError, match="cannot be imported"):
        connect(Access(EVIL, kind="no_such_module_here:build"), deadline_s=1, connections=1)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"classses": ["a", "b"]}, "unknown key 'classses'; known are kind"),
        ({"classes": ["a", "a"]}, "distinct"),
        ({"classes": "citiscapes"}, "cityscapes, camvid"),
        ({"kind": "huggingface", "roboflow": {}}, "keep one"),
        ({"huggingface": {}, "roboflow": {}}, "keep one"),
        ({"classes": ["a", "b"], "colors": [[0, 0, 0]]}, "one .* a class"),
        ({"key": "secret"}, "unknown key 'key'"),
        ({"options": {}}, "options"),
        ({"revision": "has space"}, "revision"),
    ],
)
def test_a_config_that_is_wrong_says_where(values: dict[str, object], words: str) -> None:
    """Unknown keys, doubled tables and impossible lists are one line that names the file and the key."""
    with pytest.raises(SettingsError, match=words) as failure:
        config_from(values, "t.toml")
    assert str(failure.value).startswith("t.toml: ")


def test_a_config_is_a_toml_file(tmp_path: Path) -> None:
    """It is read whole; one that is missing or no TOML is told as such."""
    path = tmp_path / "teacher.toml"
    path.write_text('classes = "cityscapes"\n[huggingface]\n[price]\ncurrency = "usd"\nper_1k = 1.5\n')
    config = read_config(path)
    assert config.kind == "huggingface"
    assert config.class_names is not None and len(config.class_names) == 19
    price = config.priced()
    assert price is not None and price.micros_per_request == 1500
    with pytest.raises(SettingsError, match="cannot read"):
        read_config(tmp_path / "none.toml")
    path.write_text("classes = [")
    with pytest.raises(SettingsError, match="is not TOML"):
        read_config(path)


async def test_each_kind_has_its_endpoint() -> None:
    """Ours is the native one, any other a dialect behind the same face; neither has sent anything."""
    ours = connect(EVIL, deadline_s=1, connections=1)
    config = config_from({"classes": ["a", "b"]}, "t.toml")
    theirs = connect(Access(EVIL, "huggingface", config), deadline_s=1, connections=1)
    assert isinstance(ours, CorteEndpoint) and isinstance(theirs, ForeignEndpoint)
    assert not ours.down and not theirs.down
    for endpoint in (ours, theirs):
        await endpoint.aclose()


def test_a_teacher_that_states_no_classes_needs_them_from_the_user() -> None:
    """The message shows the line to write and the flag to give it with."""
    with pytest.raises(SettingsError, match=r"classes = \[.*--teacher-config"):
        connect(Access(EVIL, "huggingface", key=SecretStr("k")), deadline_s=1, connections=1)
