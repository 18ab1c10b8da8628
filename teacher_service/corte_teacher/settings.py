"""What an operator may set: flag, then `CORTE_TEACHER_*`, then default. Frozen, unknown names are errors.

The rules that tie settings together live in `Settings.check_binding`, with messages that name the flag.
"""

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from corte_teacher.errors import StartError

PREFIX: Final = "CORTE_TEACHER_"
# The student's own variables share the prefix, and Kubernetes injects addresses of a service of this name.
_FOREIGN = re.compile(r"CORTE_TEACHER_(KEY|KEY_FILE|URL|SERVICE_.*|PORT_.*)")
TRIAL: Final = (64, 96)
"""The size (H, W) that a model is tried on where no other is named."""
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
    sizes: Annotated[str, Field(pattern=r"^(\d{1,5}x\d{1,5}(,\d{1,5}x\d{1,5})*)?$")] = ""
    batch: Annotated[int, Field(ge=1, le=64)] = 8
    queue: Annotated[int, Field(ge=1)] = 64
    max_queue_bytes: Annotated[int, Field(ge=1)] = 256 * 1024 * 1024
    max_body_bytes: Annotated[int, Field(ge=1)] = 16 * 1024 * 1024
    max_pixels: Annotated[int, Field(ge=1)] = (
        4 * 1024 * 1024
    )  # the head holds about 16 bytes a pixel and class
    max_connections: Annotated[int, Field(ge=1)] = 1024
    head_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    body_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    answer_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    drain_s: Annotated[float, Field(ge=0, le=600)] = 5.0
    latency_quantum_ms: Annotated[float, Field(ge=0, le=10_000)] = 0.0
    quotas: str | None = None
    audit_log: Path | None = None
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    metrics_host: str = "127.0.0.1"
    otel: bool = False
    docs: bool = False
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "warning"

    @property
    def tried_sizes(self) -> tuple[tuple[int, int], ...]:
        """The sizes (H, W) that the model is tried on before the service is ready."""
        if not self.sizes:
            return (TRIAL,)
        pairs = (item.split("x") for item in self.sizes.split(","))
        return tuple((int(height), int(width)) for height, width in pairs)

    def check_binding(self) -> None:
        """The rules that a listening service must keep. Raises StartError with the remedy."""
        for height, width in self.tried_sizes:
            if self.sizes and not 0 < height * width <= self.max_pixels:
                raise StartError(f"--sizes names {height}x{width}, which is not within --max-pixels")
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
