"""The servers that are compared: how each is installed, started, asked and ended.

Each is set up for the best speed of one model on one machine, as its own manual allows: one worker, no
batching (which costs 20 to 50 % more processor time an image here), no access log; see `Peer.setup`.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from corte_protocol.routes import PREDICT
from corte_teacher.backends.street import files
from corte_teacher.keys import Grant, create_key
from foreign.environments import environment
from peers.client import Asker, Job
from peers.work import GRAPH, GRAPH_FILE, Work

_HERE: Final = Path(__file__).resolve().parent
CONSTRAINTS: Final = _HERE / "constraints.txt"
_MODEL: Final = ("onnxruntime==1.32.0", "pillow==13.0.0", "numpy==2.4.6")
_START_S: Final = 120.0
_END_S: Final = 20.0
_LOOK_S: Final = 0.1
_PLENTY: Final = 10**12  # pixels: counted, never used up
BARE: Final = "fastapi"
OURS: Final = "corte-teacher"


@dataclass(frozen=True, slots=True)
class Peer:
    """One server. `command` follows the interpreter, {port} stands for the port; `frame` as in `Job`.

    `requirements` of its environment; none: the project's own.
    """

    name: str
    setup: str
    command: tuple[str, ...]
    requirements: tuple[str, ...] = ()
    path: str = "/predict"
    headers: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    frame: bool = False

    def python(self) -> Path:
        """The interpreter, in an environment that is built at the first call (a minute)."""
        if not self.requirements:
            return Path(sys.executable)
        return environment(f"peers-{self.name}", (*self.requirements, *_MODEL), CONSTRAINTS)


FOREIGN: Final = (
    Peer(
        BARE,
        "one async route, the model in one thread, uvicorn with uvloop and httptools",
        ("-m", "peers.fastapi_server", "{port}"),
        ("fastapi==0.165.0", "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0"),
    ),
    Peer(
        "litserve",
        "one worker, one API process, the default queue, uvloop and httptools",
        ("-m", "peers.litserve_server", "{port}"),
        ("litserve==0.2.19", "uvloop==0.23.0", "httptools==0.9.0"),
    ),
    Peer(
        "bentoml",
        "one worker, one thread, metrics and access log off",
        ("-m", "bentoml", "serve", "peers.bentoml_server:Street", "--port", "{port}", "--host", "127.0.0.1"),
        ("bentoml==1.4.39", "uvloop==0.23.0", "httptools==0.9.0"),
        env={"BENTOML_DO_NOT_TRACK": "True"},
    ),
    Peer(
        "ray",
        "one replica, RAY_SERVE_THROUGHPUT_OPTIMIZED=1, HAProxy instead of its proxy in Python, no dashboard",
        ("-m", "peers.ray_server", "{port}"),
        ("ray[serve]==2.60.0",),
        env={
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_ENABLE_HA_PROXY": "1",  # 16 to 18 ms of processor time a request, without it 27 to 35
        },
    ),
)


def our_service(folder: Path) -> Peer:
    """This service with all that it does on: a key with limits (none is reached), metrics, a disclosure.

    The key file is made in `folder`, and the counts of pixels beside it.
    """
    model, card = files()
    keys = folder / "keys.json"
    key = create_key(keys, "bench", Grant("labels", _PLENTY, _PLENTY, concurrency=64))
    return Peer(
        OURS,
        "key, its limits (pixels a minute and a day, concurrency), metrics, disclosure labels",
        (
            *("-m", "corte_teacher", "serve", "--port", "{port}", "--threads", "1"),
            *("--backend", "onnx", "--model", str(model), "--card", str(card)),
            *("--disclosure", "labels", "--keys", str(keys), "--metrics-port", "0", "--drain-s", "0"),
        ),
        path=PREDICT,
        headers={"authorization": f"Bearer {key}"},
        frame=True,
    )


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers right. `root` is its supervisor; `ready_s` from its start to its first answer."""

    peer: Peer
    port: int
    root: int
    ready_s: float


@contextmanager
def running(peer: Peer, folder: Path, work: Work) -> Iterator[Running]:
    """Start a server, until the end. `folder` holds the work, and gets the server's log.

    Raises RuntimeError with the end of the log where it does not answer right.
    """
    port, python = _free_port(), peer.python()
    command = [str(python), *(word.replace("{port}", str(port)) for word in peer.command)]
    log = folder / f"{peer.name}.log"
    began = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "peers.supervise", *command],
            cwd=folder,
            env=_environment(peer, folder),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    assert process.stdin is not None
    try:
        job = Job(port, peer.path, dict(peer.headers), peer.frame, str(folder), process.pid, 1, 0.0, 0.0)
        _wait_for(job, work, process, began + _START_S)
        yield Running(peer, port, process.pid, time.perf_counter() - began)
    except TimeoutError as exc:
        text = log.read_text(errors="replace")[-4000:]
        raise RuntimeError(f"{peer.name}: {exc}; its log ends:\n{text}") from exc
    finally:
        process.stdin.close()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def environment_of_benchmarks() -> dict[str, str]:
    """For a process in a peer's environment: nothing of ours but this folder's modules, one thread."""
    dropped = ("CORTE_TEACHER_", "PYTHON", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | {
        "PYTHONPATH": str(_HERE.parent),
        "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
    }


def _environment(peer: Peer, folder: Path) -> dict[str, str]:
    env = environment_of_benchmarks()
    if not peer.requirements:  # it may be told to run another checkout
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (env["PYTHONPATH"], os.environ.get("PYTHONPATH"))))
    haproxy = "RAY_SERVE_HAPROXY_"
    places = {
        "BENTOML_HOME": str(folder / "bentoml"),
        "RAY_TMPDIR": str(folder),
        f"{haproxy}CONFIG_FILE_LOC": str(folder / "haproxy" / "haproxy.cfg"),
        f"{haproxy}SOCKET_PATH": str(folder / "haproxy" / "admin.sock"),
        f"{haproxy}METRICS_SOCKET_PATH": str(folder / "haproxy" / "metrics.sock"),
        f"{haproxy}SERVER_STATE_BASE": str(folder / "haproxy"),
        f"{haproxy}SERVER_STATE_FILE": str(folder / "haproxy" / "server-state"),
    }
    return env | places | {GRAPH: str(folder / GRAPH_FILE)} | dict(peer.env)


def _wait_for(job: Job, work: Work, process: "subprocess.Popen[bytes]", deadline: float) -> None:
    """Until the first right answer. Raises TimeoutError where the server ends or the deadline passes."""
    last = "no answer"
    while time.perf_counter() < deadline:
        if process.poll() is not None:
            raise TimeoutError(f"it ended with status {process.returncode}")
        asker = Asker(job, work)
        try:
            tally = asker.stretch(0.0)
        finally:
            asker.close()
        if tally.ends:
            return
        last = f"failed {tally.failed}, wrong {tally.wrong}"
        time.sleep(_LOOK_S)
    raise TimeoutError(f"no right answer in {_START_S:.0f} s, lastly {last}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
