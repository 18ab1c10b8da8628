"""Endings that lose nothing: SIGTERM under load, a rolling restart behind nginx, a hot swap of the model.

Usage: python -m operations.ending [--requests 10000] [--write FILE]. nginx is Debian's own (apt-get install
nginx-light); the rolling restart is left out loudly where it is missing. The clients of the first and the
third part do not retry; the second part's client is the student's own endpoint.
"""

import argparse
import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper

from corte_protocol import Disclosure, decode_prediction
from corte_student.endpoints import connect
from corte_teacher.backends import street
from loopback import free_port
from operations import tell
from operations.client import Connection, Said, jpeg
from operations.overload import PREDICT
from serving import Running, teacher_process

_DRAIN_S = 2.0
_PIXELS = 256 * 512


async def terminated(body: bytes, clients: int = 8) -> dict[str, Any]:
    """SIGTERM while clients without any retry keep asking: every request that was sent gets its answer."""
    said: list[Said] = []
    refused = 0

    async def asking(url: str) -> None:
        nonlocal refused
        connection = Connection(url)
        while True:
            answer = await connection.post(PREDICT, body)
            if answer.status == 0 and b"ConnectionRefused" in answer.body:
                refused += 1  # nobody listens any more: nothing was sent, so nothing is lost
                return
            said.append(answer)
            if answer.status != 200:
                return

    with teacher_process(["--threads", "1"], {"CORTE_TEACHER_DRAIN_S": str(_DRAIN_S)}) as teacher:
        tasks = [asyncio.create_task(asking(teacher.url)) for _ in range(clients)]
        await asyncio.sleep(2.0)
        teacher.process.send_signal(signal.SIGTERM)
        await asyncio.gather(*tasks)
        status = await asyncio.to_thread(teacher.process.wait)
    return {
        "answers": dict(Counter(a.status for a in said)),
        "lost in flight": sum(a.status == 0 for a in said),
        "clients that ended at a closed port": refused,
        "exit status": status,
    }


@contextmanager
def nginx(folder: Path, ports: list[int]) -> Iterator[str]:
    """The URL of an nginx in front of services on `ports`."""
    listen = free_port()
    servers = "".join(f"server 127.0.0.1:{port} max_fails=1 fail_timeout=1s;" for port in ports)
    config = folder / "nginx.conf"
    config.write_text(
        f"{'user root; ' if os.getuid() == 0 else ''}daemon off; pid {folder}/pid;\n"
        f"error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; client_max_body_size 20m; client_body_temp_path {folder}/body;\n"
        f"proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;\n"
        f"scgi_temp_path {folder}/s; upstream teachers {{ {servers} keepalive 16; }}\n"
        f"server {{ listen 127.0.0.1:{listen}; location / {{ proxy_pass http://teachers;\n"
        'proxy_http_version 1.1; proxy_set_header Connection ""; } } }\n'
    )
    process = subprocess.Popen(["nginx", "-p", str(folder), "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        yield f"http://127.0.0.1:{listen}"
    finally:
        process.terminate()
        process.wait(10)


async def rolling(folder: Path, body: bytes, requests: int) -> dict[str, Any]:
    """Both replicas are restarted, one after the other and again, while our client asks through nginx."""
    ports = [free_port(), free_port()]
    env = {"CORTE_TEACHER_DRAIN_S": str(_DRAIN_S)}
    restarts, lost, answered = 0, Counter[str](), 0
    left = iter(range(requests))
    began = time.perf_counter()

    with nginx(folder, ports) as url:
        endpoint = connect(url, deadline_s=60, connections=8)

        async def asking() -> None:
            nonlocal answered
            for _ in left:
                try:
                    await endpoint.predict(body, "image/jpeg", Disclosure(1, 0))
                    answered += 1
                except Exception as exc:  # whatever it is, the image was lost
                    lost[f"{type(exc).__name__}: {exc}"[:200]] += 1

        with ExitStack() as first, ExitStack() as second:
            stacks = [first, second]
            for stack, port in zip(stacks, ports, strict=True):
                stack.enter_context(teacher_process(["--threads", "1"], env, port=port))
            work = asyncio.gather(*(asking() for _ in range(8)))
            turn = 0
            while not work.done():
                await asyncio.sleep(3.0)
                stack, port = stacks[turn % 2], ports[turn % 2]
                await asyncio.to_thread(stack.close)
                await asyncio.to_thread(
                    stack.enter_context, teacher_process(["--threads", "1"], env, port=port)
                )
                restarts, turn = restarts + 1, turn + 1
                print(f"  {answered} of {requests}, {restarts} restarts", file=sys.stderr)
            await work
        await endpoint.aclose()
    return {
        "requests": requests,
        "answered": answered,
        "lost": dict(lost),
        "restarts": restarts,
        "seconds": round(time.perf_counter() - began, 1),
    }


def write_variant(folder: Path, shift: float) -> None:
    """The embedded model with its last bias shifted: another model with other answers, put there at once."""
    model = onnx.load(str(street.files()[0]))
    bias = next(t for t in reversed(model.graph.initializer) if len(t.dims) == 1 and t.dims[0] == 9)
    moved = numpy_helper.to_array(bias).copy()
    moved[0] += shift
    bias.CopyFrom(numpy_helper.from_array(moved, bias.name))
    beside = folder / "next.onnx"
    onnx.save(model, str(beside))
    beside.replace(folder / "model.onnx")


async def swapped(folder: Path, body: bytes, swaps: int = 3) -> dict[str, Any]:
    """The model file is replaced and SIGHUP sent, several times, under load."""
    shutil.copy(street.files()[1], folder / "model.toml")
    write_variant(folder, 0.0)
    seen: dict[str, set[bytes]] = {}
    counted: Counter[str] = Counter()
    over = False

    async def asking(teacher: Running) -> None:
        connection = Connection(teacher.url)
        while not over:
            said = await connection.post(PREDICT, body)
            counted[str(said.status)] += 1
            if said.status != 200:
                continue
            answer = decode_prediction(said.body, max_pixels=_PIXELS)
            if answer.revision != said.headers["corte-revision"]:
                counted["header and frame of two revisions"] += 1
            seen.setdefault(answer.revision, set()).add(answer.classes.tobytes())

    args = ["--backend", "onnx", "--model", str(folder / "model.onnx"), "--open", "--threads", "1"]
    with teacher_process(args) as teacher:
        tasks = [asyncio.create_task(asking(teacher)) for _ in range(8)]
        for n in range(1, swaps + 1):
            await asyncio.sleep(3.0)
            write_variant(folder, float(n))
            teacher.process.send_signal(signal.SIGHUP)
            known = len(seen)
            until = time.perf_counter() + 30
            while len(seen) == known and time.perf_counter() < until:  # noqa: ASYNC110 - no event tells it
                await asyncio.sleep(0.05)
        await asyncio.sleep(1.0)
        over = True
        await asyncio.gather(*tasks)
    return {
        "answers": dict(counted),
        "revisions": len(seen),
        "revisions with more than one answer to the same image": sum(len(a) > 1 for a in seen.values()),
    }


def main() -> int:
    """Run the three parts and print them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    body = jpeg(256, 512, 1)
    found: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds")}
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        found["SIGTERM under load"] = asyncio.run(terminated(body))
        found["hot swap"] = asyncio.run(swapped(Path(one), body))
        if shutil.which("nginx"):
            found["rolling restart"] = asyncio.run(rolling(Path(two), body, options.requests))
        else:
            print("no nginx: apt-get install nginx-light; the rolling restart is left out", file=sys.stderr)
    tell(found, options.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
