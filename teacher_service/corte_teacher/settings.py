"""What an operator may set: flag, then `CORTE_TEACHER_*`, then default. Frozen, unknown names are errors.

The rules that tie settings together live in `Settings.check_binding`, with messages that name the flag.
"""

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from corte_teacher.errors import StartError

PREFIX: Final = "CORTE_TEACHER_"
# The student's own variables share the prefix, and Kubernetes injects addresses of a service of this name.
_FOREIGN = re.compile(r"CORTE_TEACHER_(KEY|KEY_FILE|URL|SERVICE_.*|PORT_.*)")
MAKE_KEYS: Final = "corte-teacher keys create NAME --keys teacher-keys.json"


class Settings(BaseSettings):
    """The settings of `serve` and `check`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    backend: str = "street"
    model: Path | None = None
    card: Path | None = None
    disclosure: str = "margin"
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    open: bool = False
    keys: Path | None = None
    behind_proxy: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    threads: Annotated[int, Field(ge=0)] = 0
    queue: Annotated[int, Field(ge=1)] = 64
    max_body_bytes: Annotated[int, Field(ge=1)] = 16 * 1024 * 1024
    max_pixels: Annotated[int, Field(ge=1)] = (
        4 * 1024 * 1024
    )  # the head holds about 16 bytes a pixel and class
    body_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    answer_timeout_s: Annotated[float, Field(gt=0)] = 120.0

    def check_binding(self) -> None:
        """The rules that a listening service must keep. Raises StartError with the remedy."""
        loopback = is_loopback(self.host)
        if (self.tls_cert is None) != (self.tls_key is None):
            raise StartError("--tls-cert and --tls-key go together")
        for file in (self.tls_cert, self.tls_key):
            if file is not None and not file.is_file():
                raise StartError(f"no file at {file}")
        if self.open and self.keys is not None:
            raise StartError("--open and --keys contradict each other: give one of them")
        if self.open and not loopback and self.backend != "street":
            raise StartError(
                f"--open binds to loopback only, not to {self.host}: make a key with `{MAKE_KEYS}` "
                "and give --keys teacher-keys.json"
            )
        if not self.open and self.keys is None and self.backend != "street":
            raise StartError(
                f"this model needs a key file: make one with `{MAKE_KEYS}` and give --keys teacher-keys.json "
                "(or --open, on loopback only)"
            )
        if not loopback and self.tls_cert is None and not self.behind_proxy:
            raise StartError(
                f"plain HTTP on {self.host} would send keys and images in the clear: "
                "give --tls-cert and --tls-key, or --behind-proxy where something in front of it ends TLS"
            )


def read_settings(flags: Mapping[str, object], environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings out of the flags that were given (None: not given), then the environment, then defaults.

    Raises StartError with one line that names the flag and the variable.
    """
    names = {PREFIX + field.upper() for field in Settings.model_fields}
    for variable in environ:
        upper = variable.upper()
        if upper.startswith(PREFIX) and upper not in names and not _FOREIGN.fullmatch(upper):
            raise StartError(f"unknown variable {variable}: choose from {', '.join(sorted(names))}")
    try:
        settings = Settings(**{k: v for k, v in flags.items() if v is not None})  # type: ignore[arg-type]
    except ValidationError as exc:
        error = exc.errors(include_url=False)[0]
        field = str(error["loc"][0])
        raise StartError(
            f"--{field.replace('_', '-')} ({PREFIX}{field.upper()}) is {error['input']!r}: {error['msg']}"
        ) from exc
    return settings


def is_loopback(host: str) -> bool:
    """Whether a host to bind to is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
