"""Environments for clients and servers that others wrote: each in a folder of its own, built on first use.

Rule 1: nothing of them enters the project's environment, whose constraints they contradict.
Rule 2: versions are pinned, also those of what they need (constraints.txt beside this file, or another).
Rule 3: an environment is whole or is built anew: its stamp is written last, and says what was asked for.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
FOLDER: Final = HERE.parents[1] / ".foreign"
CONSTRAINTS: Final = HERE / "constraints.txt"

TRITON_CLIENT: Final = ("tritonclient[http]==2.73.0",)
HUGGINGFACE: Final = ("huggingface_hub==2.4.0", "pillow==13.0.0")
SCHEMATHESIS: Final = ("schemathesis==4.32.5",)
KSERVE: Final = ("kserve==0.21.0", "onnxruntime==1.32.0")  # its client and its server


def environment(name: str, requirements: Sequence[str], constraints: Path = CONSTRAINTS) -> Path:
    """The Python of the environment `name` that holds `requirements`, which is built if need be.

    `constraints` pins them and what they need. Safe with several processes at once, and where an earlier
    build was killed. Raises RuntimeError with what pip said.
    """
    FOLDER.mkdir(exist_ok=True)
    folder = FOLDER / name
    python, stamp = folder / "bin" / "python", folder / "built-for"
    pins = hashlib.sha256(constraints.read_bytes()).hexdigest()
    wanted = "\n".join([sys.version, pins, *requirements])
    with (FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.is_file() and stamp.read_text() == wanted:
            return python
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-I", "-m", "venv", str(folder)])
        pip = [str(python), "-I", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        _run([*pip, "-c", str(constraints), *requirements])
        unfinished = stamp.with_suffix(".unfinished")
        unfinished.write_text(wanted)
        unfinished.replace(stamp)
    return python


def talk(python: Path, script: str, job: dict[str, Any], *, timeout: float = 120.0) -> Any:
    """Run a script of this folder in an environment: `job` to its standard input, JSON from its output.

    Keys travel in `job`, never in an argument. Raises RuntimeError with the script's own words.
    """
    return json.loads(_run(command(python, script), json.dumps(job), timeout))


def command(python: Path, script: str) -> list[str]:
    """How a script of this folder is started, isolated from the project and from the caller's settings."""
    return [str(python), "-I", str(HERE / script)]


def _run(arguments: Sequence[str], given: str = "", timeout: float = 900.0) -> str:
    done = subprocess.run(
        arguments,
        input=given,
        env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout
