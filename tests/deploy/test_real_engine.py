"""The compose file in a real engine: built, served, asked, taken down. Skips, saying so, without an engine.

Needs a running Docker daemon, Compose (v2 or 1.29.2) and, for the builds, `python:3.11-slim` and a package
index. Each run is a project of its own with its own image tag, port and volumes, and removes them all.
"""

import io
import json
import os
import secrets
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corte_protocol import decode_info, decode_prediction

ROOT = Path(__file__).parents[2]
BACKENDS = ROOT / "teacher_service" / "corte_teacher" / "backends"
HEIGHT, WIDTH = 96, 160

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class Project:
    """One compose project: `docker-compose.yml` as it is, with settings in the environment only."""

    def __init__(self, compose: list[str]) -> None:
        self.name = f"corte-check-{secrets.token_hex(4)}"
        self.image = f"{self.name}:teacher"
        self.port = _free_port()
        self._compose = compose
        # A developer's own settings and `.env` must not decide what is proven here.
        self._env = {k: v for k, v in os.environ.items() if not k.startswith("CORTE_")}
        self._env |= {"CORTE_TEACHER_IMAGE": self.image, "CORTE_PUBLISHED_PORT": str(self.port)}

    def compose(self, *args: str, **settings: str) -> str:
        """Run Compose on this project and return its stdout."""
        example = ROOT / "deploy" / ".env.example"
        command = [*self._compose, "--project-name", self.name, "--env-file", str(example)]
        return _run([*command, "--file", str(ROOT / "docker-compose.yml"), *args], self._env | settings)

    def up(self, **settings: str) -> None:
        """`up -d teacher` with these settings, then wait until its own healthcheck calls it healthy."""
        self.compose("up", "-d", "teacher", **settings)
        while True:
            state = json.loads(self.inspect())["State"]
            if state["Health"]["Status"] == "healthy":
                return
            if state["Health"]["Status"] == "unhealthy" or not state["Running"] or state["Restarting"]:
                pytest.fail(f"the teacher did not get healthy:\n{self.compose('logs', 'teacher')}")
            time.sleep(0.5)  # polling an engine: nothing here depends on how long it takes

    @property
    def container(self) -> str:
        """The id of the teacher's container."""
        return self.compose("ps", "-q", "teacher").strip()

    def inspect(self) -> str:
        """What the engine says of the teacher's container, as JSON."""
        return _run(["docker", "inspect", "--format", "{{json .}}", self.container])

    def inside(self, program: str) -> str:
        """Run a Python program inside the teacher's container and return what it prints."""
        return _run(["docker", "exec", self.container, "python", "-c", program])

    def beside(self, network: str, program: str) -> str:
        """Run a Python program in a container of its own on one network of this project."""
        where = ["--network", f"{self.name}_{network}", "--entrypoint", "python"]
        return _run(["docker", "run", "--rm", *where, self.image, "-c", program])

    def ask(self, path: str, body: bytes | None = None, key: str | None = None) -> tuple[int, bytes]:
        """One request through the published port: status and body."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=body)
        if body is not None:
            request.add_header("content-type", "image/png")
        if key is not None:
            request.add_header("authorization", f"Bearer {key}")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, exc.read()


@pytest.fixture(scope="module")
def built() -> Iterator[Project]:
    """A project whose teacher image is built; everything it made is gone afterwards."""
    project = Project(_engine())
    try:
        project.compose("build", "teacher")
        yield project
    finally:
        project.compose("down", "--volumes", "--remove-orphans")
        subprocess.run(["docker", "image", "rm", "--force", project.image], check=False, capture_output=True)


@pytest.fixture(scope="module")
def teacher(built: Project) -> Project:
    """`docker compose up teacher` without any setting, healthy."""
    built.up()
    return built


def test_one_command_serves_the_street_model(teacher: Project) -> None:
    """Up without settings, the keyless teacher answers an image sent to the published port."""
    status, body = teacher.ask("/v1/info")
    assert status == 200
    info = decode_info(body)
    assert str(info.disclosure) == "margin" and len(info.classes) >= 9
    status, frame = teacher.ask("/v1/predict", _picture())
    assert status == 200
    prediction = decode_prediction(frame, max_pixels=HEIGHT * WIDTH)
    assert prediction.classes.shape == (2, HEIGHT, WIDTH) and prediction.revision == info.revision


def test_the_port_is_published_on_loopback_only(teacher: Project) -> None:
    """The engine binds the one published port to 127.0.0.1."""
    ports = json.loads(teacher.inspect())["NetworkSettings"]["Ports"]
    assert ports == {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(teacher.port)}]}


def test_the_image_holds_no_torch_and_no_student(teacher: Project) -> None:
    """Inside the image torch, timm, the student and its HTTP client cannot be found; the teacher can."""
    found = teacher.inside(
        "import importlib.util as u;"
        "print([n for n in ('torch', 'timm', 'corte_student', 'httpx', 'corte_teacher') if u.find_spec(n)])"
    )
    assert found.strip() == "['corte_teacher']"


def test_the_process_is_without_rights(teacher: Project) -> None:
    """The service runs as uid 10001 without capabilities or new privileges; only /tmp takes a file."""
    status = teacher.inside("print(open('/proc/1/status').read())")
    fields = {k: v.split() for k, v in (line.split(":", 1) for line in status.splitlines() if ":" in line)}
    assert fields["Uid"] == ["10001"] * 4 and fields["Gid"] == ["10001"] * 4
    assert all(int(fields[name][0], 16) == 0 for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"))
    assert fields["NoNewPrivs"] == ["1"]
    written = teacher.inside(
        "import os\n"
        "for folder in ('/', '/opt/venv', '/keys', '/models', '/tmp'):\n"
        "    try:\n"
        "        open(folder + '/probe', 'w').close()\n"
        "        os.remove(folder + '/probe')\n"
        "        print(folder)\n"
        "    except OSError:\n"
        "        pass\n"
    )
    assert written.split() == ["/tmp"]
    assert json.loads(teacher.inspect())["HostConfig"]["ReadonlyRootfs"] is True


def test_the_model_is_not_reported(teacher: Project) -> None:
    """onnxruntime's telemetry does not start; where it does, it complains that the root is read-only."""
    log = teacher.compose("logs", "teacher")
    assert "listening on" in log and "telemetry" not in log.lower()


def test_boundary_leads_to_the_teacher(teacher: Project) -> None:
    """A container on `boundary` alone gets an answer from teacher:8000."""
    program = (
        "import http.client as h;"
        "c = h.HTTPConnection('teacher', 8000, timeout=20);"
        "c.request('GET', '/readyz');"
        "print(c.getresponse().status)"
    )
    assert teacher.beside("boundary", program).split() == ["200"]


def test_boundary_leads_nowhere_else(teacher: Project) -> None:
    """A service on the host's 0.0.0.0 answers a container on `front`, and at no gateway one on `boundary`.

    The first half is the control: where it fails (a firewall, an engine inside a VM), nothing is proven.
    """
    with socket.create_server(("0.0.0.0", 0)) as host:
        gateways = [_gateway(f"{teacher.name}_{name}") for name in ("boundary", "front")] + [
            _gateway("bridge")
        ]
        program = (
            "import socket\n"
            f"for address in {gateways!r}:\n"
            "    try:\n"
            f"        socket.create_connection((address, {host.getsockname()[1]}), timeout=3).close()\n"
            "        print(address)\n"
            "    except OSError:\n"
            "        pass\n"
        )
        if gateways[1] not in teacher.beside("front", program).split():
            pytest.skip("CONTROL NOT REACHED: this host answers no container, so silence proves nothing")
        assert teacher.beside("boundary", program) == ""


def test_another_model_is_served_with_keys(built: Project, tmp_path: Path) -> None:
    """With a model on /models and a key of the `keys` service: 401 without it, 200 with it.

    The key file lies on the volume, hashed, readable by its owner only.
    """
    models = tmp_path / "models"
    models.mkdir(mode=0o755)
    for ending in ("onnx", "toml"):
        copy = models / f"mine.{ending}"
        shutil.copyfile(BACKENDS / f"street.{ending}", copy)
        copy.chmod(0o644)
    key = built.compose("run", "--rm", "-T", "keys", "create", "checker").strip().splitlines()[-1].strip()
    assert key.startswith("ct_")
    built.up(
        CORTE_MODELS=str(models),
        CORTE_TEACHER_BACKEND="onnx",
        CORTE_TEACHER_MODEL="/models/mine.onnx",
        CORTE_TEACHER_CARD="/models/mine.toml",
        CORTE_TEACHER_KEYS="/keys/keys.json",
        CORTE_TEACHER_DISCLOSURE="labels",
    )
    assert built.ask("/v1/info")[0] == 401
    assert built.ask("/v1/predict", _picture(), key=f"{key}x")[0] == 401
    status, frame = built.ask("/v1/predict", _picture(), key=key)
    assert status == 200
    prediction = decode_prediction(frame, max_pixels=HEIGHT * WIDTH)
    assert prediction.classes.shape == (1, HEIGHT, WIDTH) and prediction.probs is None
    kept = built.inside(
        "import os; p = '/keys/keys.json'; print(oct(os.stat(p).st_mode), os.stat(p).st_uid, open(p).read())"
    )
    assert kept.startswith("0o100600 10001") and "checker" in kept and key not in kept
    assert key not in built.inspect()


def test_another_model_without_keys_does_not_start(built: Project) -> None:
    """Any model but the public one refuses to start keyless, and its line says how to make a key."""
    settings = {"CORTE_TEACHER_BACKEND": "onnx", "CORTE_TEACHER_MODEL": "/models/mine.onnx"}
    with pytest.raises(subprocess.CalledProcessError) as refused:
        built.compose("run", "--rm", "-T", "teacher", **settings)
    assert refused.value.returncode == 2 and "keys create" in refused.value.output


def test_stop_ends_the_service_cleanly(built: Project) -> None:
    """`stop` ends the teacher with status 0, which a killed one does not have."""
    built.up()
    container = built.container
    built.compose("stop", "teacher")
    assert _run(["docker", "inspect", "--format", "{{.State.ExitCode}}", container]).strip() == "0"


def _engine() -> list[str]:
    """The Compose command of this machine; skips the test where no engine answers."""
    reason = "NO DOCKER ENGINE: the deployment is not proven by this run"
    if shutil.which("docker") is None or _fails("docker", "info"):
        pytest.skip(f"{reason} (`docker info` fails)")
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and not _fails(*command, "version"):
            return command
    pytest.skip(f"{reason} (neither `docker compose` nor `docker-compose`)")


def _fails(*command: str) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode != 0


def _run(command: list[str], env: dict[str, str] | None = None) -> str:
    """Run a command and return its stdout; a failure shows all that it printed."""
    done = subprocess.run(command, env=env, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        output = f"{done.stdout}\n{done.stderr}"
        print(f"{' '.join(command)}\n{output[-8000:]}")
        raise subprocess.CalledProcessError(done.returncode, command, output)
    return done.stdout


def _gateway(network: str) -> str:
    """The address that a Docker network calls its gateway, whether or not the host has it."""
    form = "{{(index .IPAM.Config 0).Gateway}}"
    return _run(["docker", "network", "inspect", "--format", form, network]).strip()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _picture() -> bytes:
    rows = np.linspace(0, 255, HEIGHT, dtype=np.uint8)[:, None, None]
    columns = np.linspace(0, 255, WIDTH, dtype=np.uint8)[None, :, None]
    pixels = np.broadcast_to(rows // 2 + columns // 2, (HEIGHT, WIDTH, 3))
    target = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(target, "PNG")
    return target.getvalue()
