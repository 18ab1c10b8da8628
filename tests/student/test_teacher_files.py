"""The files of examples/teachers are read, understood and complete."""

import re
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel, SecretStr

from corte_student.endpoints import Access, connect, kind_of
from corte_student.endpoints.config import KINDS, TeacherConfig, config_from, read_config
from corte_student.endpoints.vendors import spoken_by
from corte_student.endpoints.vendors.custom import Auth, Errors, Poll
from corte_student.endpoints.vendors.described import AnswerSpec
from corte_student.endpoints.vendors.described_request import Request
from corte_student.money import Price

TEACHERS = Path(__file__).parents[2] / "examples" / "teachers"
FILES = sorted(TEACHERS.glob("*.toml"))
KEYLESS = {"sagemaker"}
COMMENTED = re.compile(r"^# ([a-z_]+ = .+)$")


def test_there_is_one_for_every_kind() -> None:
    """Our own service needs none."""
    assert {read_config(path).kind for path in FILES} == set(KINDS) - {"corte"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
async def test_each_becomes_an_endpoint(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, with nothing but the URL in it; nothing is sent."""
    for name, value in (("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x")):
        monkeypatch.setenv(name, value)
    config = read_config(path)
    assert config.url is not None
    key = None if config.kind in KEYLESS else SecretStr("k3y")
    access = Access(config.url, None, config, key)
    assert kind_of(access) == config.kind
    endpoint = connect(access, deadline_s=1, connections=1)
    await endpoint.aclose()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_says_how_to_try_it(path: Path) -> None:
    """The commands in its head name the file itself and flags that exist, and no key stands in it."""
    text = path.read_text()
    assert f"corte-student doctor --teacher-config examples/teachers/{path.name} --image IMAGE" in text
    assert "https://" in text.split("kind =")[0]
    if read_config(path).kind not in {*KEYLESS, "openinference", "vertex"}:
        assert "export CORTE_TEACHER_KEY=" in text
    assert max(len(line) for line in text.splitlines() if "url = " not in line) <= 120


def uncommented(text: str) -> str:
    """Every commented key in place, but where that key stands already in the same table."""
    lines: list[str] = []
    here: set[str] = set()
    for line in text.splitlines():
        match = COMMENTED.match(line)
        plain = match[1] if match else line
        name = plain.partition("=")[0].strip() if "=" in plain and not plain.startswith("#") else None
        if plain.startswith("["):
            here = set()
        if match and name in here:
            continue
        if name is not None:
            here.add(name)
        lines.append(plain)
    return "\n".join(lines)


TOGETHER = {"mean", "std", "content_type", "format", "scale_up_timeout_s"}
"""Keys that need others, another URL, or a table that is commented out as well."""


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.stem != "custom"], ids=lambda path: path.name
)
def test_every_key_that_is_commented_out_can_be_put_in(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at a time, in the place of what stood there."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    lines = path.read_text().splitlines()
    tried = 0
    for place, line in enumerate(lines):
        match = COMMENTED.match(line)
        if match is None or (name := match[1].partition(" =")[0]) in TOGETHER:
            continue
        others = [other for other in lines[:place] + lines[place + 1 :] if not other.startswith(f"{name} =")]
        text = "\n".join((*others[:place], match[1], *others[place:]))
        if name == "url":
            text = text.replace("model =", "# model =")
        config = config_from(tomllib.loads(text), path.name)
        assert config.kind is not None and config.url is not None
        spoken_by(config.kind, config.url, config, None)
        config.priced()
        tried += 1
    assert tried


def test_the_custom_file_names_every_key() -> None:
    """Commented out or not: nothing is left to be found in the code."""
    values = tomllib.loads(uncommented((TEACHERS / "custom.toml").read_text()))
    custom = values.pop("custom")
    tables: dict[str, tuple[type[BaseModel], dict[str, object]]] = {
        "request": (Request, custom["request"]),
        "auth": (Auth, custom["auth"]),
        "answer": (AnswerSpec, custom["answer"]),
        "poll": (Poll, custom["poll"]),
        "errors": (Errors, custom["errors"]),
    }
    assert set(custom) == set(tables)
    for name, (model, table) in tables.items():
        assert set(table) == set(model.model_fields), name
    # a model's name belongs to the request, the options are the tables
    assert set(values) == set(TeacherConfig.model_fields) - {"model", "options"}
    assert isinstance(TeacherConfig.model_validate(values).priced(), Price)


def test_what_is_commented_out_of_the_custom_file_is_legal() -> None:
    """Each key by itself, where it needs nothing else: put into a plain description."""
    values = tomllib.loads(uncommented((TEACHERS / "custom.toml").read_text()))["custom"]
    for name in ("method", "path", "query", "headers", "content_type"):
        Request.model_validate({name: values["request"][name]})
    Request.model_validate({"body": "multipart", "field": "image", "fields": values["request"]["fields"]})
    answer = values["answer"]
    for name in ("confidence", "ids", "tolerance", "void_ids", "ignore_unknown", "stretched", "threshold"):
        AnswerSpec.model_validate({"mask": "a", name: answer[name]})
    AnswerSpec.model_validate({"mask": "a", "encoding": "palette-png", "palette": answer["palette"]})
    Errors.model_validate(values["errors"])
