"""What `build` of a vendor's file gives: the dialect, how requests are signed, where links may lead."""

from dataclasses import dataclass

from pydantic import SecretStr

from corte_protocol import Limits
from corte_student.endpoints.config import TeacherConfig
from corte_student.endpoints.dialect import Dialect
from corte_student.endpoints.signing import Anonymous, HeaderKey, Signer


@dataclass(frozen=True, slots=True)
class Spoken:
    """`link_hosts`: `example.com` is that host, `*.example.com` any below it; empty where no answer links."""

    dialect: Dialect
    signer: Signer
    link_hosts: tuple[str, ...] = ()


def bearer(key: SecretStr | None) -> Signer:
    """`Authorization: Bearer KEY`, or nothing without a key."""
    return Anonymous() if key is None else HeaderKey(key)


def limits_of(config: TeacherConfig, max_bytes: int, max_pixels: int = 64_000_000) -> Limits:
    """A vendor's documented limits, where the user's config does not state others."""
    return Limits(config.max_body_bytes or max_bytes, config.max_pixels or max_pixels)
