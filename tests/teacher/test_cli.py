"""The command line as an operator meets it: processes, exit codes and printed lines."""

import os
import re
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from PIL import Image

from corte_protocol.types import UInt8
from serving import running_teacher


def run(
    *args: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `corte-teacher ARGS` to its end."""
    base = {k: v for k, v in os.environ.items() if not k.startswith("CORTE_TEACHER_")}
    return subprocess.run(
        [sys.executable, "-m", "corte_teacher", *args],
        env={**base, **(env or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_check_prints_what_a_client_would_see(tiny: Path, tmp_path: Path, pixels: UInt8) -> None:
    """One image through the whole path, without a key or a socket."""
    Image.fromarray(pixels).save(tmp_path / "a.png")
    done = run("check", "--backend", "onnx", "--model", str(tiny), "--image", str(tmp_path / "a.png"))
    assert done.returncode == 0, done.stderr
    assert "image        34 x 21" in done.stdout
    assert "the 2 best classes of each pixel with scores of 8 bits" in done.stdout
    assert "%  road" in done.stdout or "%  sky" in done.stdout
    done = run("check", "--backend", "onnx", "--model", str(tiny), "--disclosure", "labels")
    assert "the best class of each pixel, no score" in done.stdout


def test_errors_are_one_line_and_status_two(tiny: Path, tmp_path: Path) -> None:
    """No traceback: the name of the program, the cause, the remedy."""
    text = tmp_path / "a.txt"
    text.write_text("no image")
    model = ["--backend", "onnx", "--model", str(tiny)]
    serve = ["serve", *model, "--port", "0"]  # the default's may be in use
    cases = {
        (*serve,): "make one with `corte-teacher keys create NAME",
        (*serve, "--open", "--disclosure", "most"): "unknown disclosure 'most'",
        (*serve, "--keys", str(tmp_path / "none.json")): "no key file at",
        ("check", *model, "--image", str(text)): "no answer \\(malformed\\)",
        (*serve, "--open", "--tls-cert", str(text), "--tls-key", str(text)): "--tls-cert or --tls-key cannot",
    }
    for args, message in cases.items():
        done = run(*args)
        assert done.returncode == 2, done
        assert done.stderr.startswith("corte-teacher: ") and done.stderr.count("\n") == 1, done.stderr
        assert re.search(message, done.stderr), done.stderr


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    """Standard output of `create` is the key alone, so that a script can take it."""
    env = {"CORTE_TEACHER_KEYS": str(tmp_path / "k.json")}
    made = run("keys", "create", "alice", env=env)
    key = made.stdout.strip()
    assert made.returncode == 0 and key.startswith("ct_") and made.stdout.count("\n") == 1
    assert "not shown again" in made.stderr
    listed = run("keys", "list", "--keys", str(tmp_path / "k.json"))
    assert listed.stdout.startswith("alice  ct_") and key not in listed.stdout
    assert run("keys", "revoke", "alice", env=env).returncode == 0
    assert run("keys", "list", env=env).stdout == ""


def test_the_start_page_names_url_classes_and_policy(tiny: Path) -> None:
    """What an operator must know is printed once, when the service is ready; SIGINT ends it with 0."""
    model = ["--backend", "onnx", "--model", str(tiny)]
    process = subprocess.Popen(
        [sys.executable, "-m", "corte_teacher", "serve", "--port", "0", "--open", *model],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    page = "".join(process.stdout.readline() for _ in range(7))
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    process.stdout.close()
    assert "listening on http://127.0.0.1:" in page
    assert "classes      5: road, car, truck, sky, tree" in page
    assert "disclosure   margin" in page
    assert "access       open" in page
    assert "corte-student train --teacher-url http://127.0.0.1:" in page
    assert "secret" not in page


def test_a_taken_port_is_named(tiny: Path, open_teacher: str) -> None:
    """The remedy is another port."""
    port = open_teacher.rsplit(":", 1)[1]
    done = run("serve", "--backend", "onnx", "--model", str(tiny), "--open", "--port", port)
    assert done.returncode == 2 and "choose another --port" in done.stderr


def test_tls_is_served(tiny: Path, tmp_path: Path) -> None:
    """With a certificate and its key the service speaks https, off loopback without --behind-proxy too."""
    cert, key, keys = tmp_path / "c.pem", tmp_path / "k.pem", tmp_path / "keys.json"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=a "
        f"-addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {cert}"
    )
    made = subprocess.run(command.split(), capture_output=True, check=False)
    if made.returncode:
        pytest.skip("NO OPENSSL: TLS is not tested")
    bearer = run("keys", "create", "alice", "--keys", str(keys)).stdout.strip()
    args = ["--backend", "onnx", "--model", str(tiny), "--host", "0.0.0.0", "--keys", str(keys)]
    with running_teacher([*args, "--tls-cert", str(cert), "--tls-key", str(key)]) as url:
        assert url.startswith("https://0.0.0.0:")
        context = ssl.create_default_context(cafile=str(cert))
        address = url.replace("0.0.0.0", "127.0.0.1")
        answer = httpx.get(
            f"{address}/v1/info", headers={"authorization": f"Bearer {bearer}"}, verify=context
        )
        assert answer.status_code == 200


def test_help_is_quick_to_load() -> None:
    """`--help` imports neither the web framework nor a model runtime."""
    code = (
        "import sys, corte_teacher.cli; "
        "sys.exit(bool({'fastapi', 'uvicorn', 'onnxruntime', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
