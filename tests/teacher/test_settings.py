"""Flags, variables and the rules between them."""

from pathlib import Path
from typing import Any

import pytest

from corte_teacher.errors import StartError
from corte_teacher.settings import is_loopback, read_settings


def checked(**flags: Any) -> None:
    """Read settings as `serve` does."""
    read_settings(flags, {}).check_binding()


def test_a_flag_beats_a_variable_beats_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is flag, environment, default; a flag that was not given is None."""
    assert read_settings({}).port == 8000
    monkeypatch.setenv("CORTE_TEACHER_PORT", "9000")
    assert read_settings({"port": None}).port == 9000
    assert read_settings({"port": 9001}).port == 9001


def test_an_unknown_or_wrong_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt variable is not ignored; the student's own are."""
    with pytest.raises(StartError, match="unknown variable CORTE_TEACHER_DISCLOSE: choose from"):
        read_settings({}, {"CORTE_TEACHER_DISCLOSE": "labels"})
    read_settings({}, {"CORTE_TEACHER_KEY": "ct_x", "CORTE_TEACHER_SERVICE_HOST": "10.0.0.1"})
    monkeypatch.setenv("CORTE_TEACHER_PORT", "tcp://10.0.0.1:8000")
    with pytest.raises(StartError, match=r"--port \(CORTE_TEACHER_PORT\) is 'tcp"):
        read_settings({})


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"open": True},
        {"host": "::1"},
        {"host": "0.0.0.0", "behind_proxy": True},
        {"host": "0.0.0.0", "behind_proxy": True, "open": True},
        {"backend": "onnx", "open": True},
        {"backend": "onnx", "keys": Path("k")},
        {"backend": "onnx", "keys": Path("k"), "host": "0.0.0.0", "behind_proxy": True},
        {
            "backend": "onnx",
            "keys": Path("k"),
            "host": "0.0.0.0",
            "tls_cert": Path(__file__),
            "tls_key": Path(__file__),
        },
    ],
)
def test_what_may_listen(flags: dict[str, Any]) -> None:
    """Street may be keyless; others need keys, or loopback and --open; off loopback TLS ends somewhere."""
    checked(**flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"host": "0.0.0.0"}, "give --tls-cert and --tls-key, or --behind-proxy"),
        ({"host": "teacher.example"}, "--behind-proxy"),
        ({"backend": "onnx"}, "keys create NAME --keys"),
        ({"backend": "a:b", "host": "0.0.0.0", "behind_proxy": True}, "keys create NAME --keys"),
        ({"backend": "onnx", "open": True, "host": "0.0.0.0", "behind_proxy": True}, "loopback only"),
        ({"backend": "onnx", "keys": Path("k"), "host": "192.168.0.1"}, "in the clear"),
        ({"open": True, "keys": Path("k")}, "contradict"),
        ({"tls_cert": Path(__file__)}, "go together"),
        ({"tls_cert": Path("absent"), "tls_key": Path("absent")}, "no file at absent"),
    ],
)
def test_what_may_not(flags: dict[str, Any], message: str) -> None:
    """Each refusal names the flag that changes it."""
    with pytest.raises(StartError, match=message):
        checked(**flags)


def test_loopback_is_recognised() -> None:
    """Names other than localhost are never taken for this machine."""
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.example", "")))
