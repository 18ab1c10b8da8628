"""Names that say nothing: who this service is, and which model is behind it, as 16 hex digits each.

Keyed with the key file's salt, so that whoever holds a public model cannot recognise it by its digest.
Neither depends on the disclosure policy: answers already paid for stay usable when the policy changes.
"""

import hashlib
import hmac
import json
from pathlib import Path

from corte_protocol import Disclosure, Limits, TeacherInfo
from corte_protocol.routes import PROTOCOL_VERSION
from corte_teacher.backends import OURS, Source
from corte_teacher.card import Card

_DIGITS = 16


def describe(source: Source, salt: bytes, policy: Disclosure, limits: Limits) -> TeacherInfo:
    """All that clients may know about the model behind `source`."""
    outputs = source.card.outputs
    return TeacherInfo(
        protocol=PROTOCOL_VERSION,
        teacher=_opaque(salt, "teacher", source.card.name.encode()),
        revision=source.card.revision or _opaque(salt, "revision", _digest(source)),
        classes=tuple(answer.name for answer in outputs),
        colors=tuple(answer.color for answer in outputs),
        disclosure=policy,
        limits=limits,
    )


def parse_policy(text: str, card: Card) -> Disclosure:
    """The policy by its name, for this model's classes. Raises InvalidValue."""
    return Disclosure.parse(text, len(card.outputs))


def _digest(source: Source) -> bytes:
    """Model bytes, the data files that exporters write beside them (NAME.data, NAME_data), and the card.

    Of a folder all files count, with their names; hidden ones (.git, .cache) hold no model.
    """
    total = hashlib.sha256(json.dumps(source.card.answering_fields(), sort_keys=True).encode())
    if source.backend not in OURS:
        total.update(source.backend.encode())
    if source.model is not None and source.model.is_dir():
        named = {file.relative_to(source.model): file for file in source.model.rglob("*") if file.is_file()}
        for name, file in sorted(named.items()):
            if not any(part.startswith(".") for part in name.parts):
                total.update(hashlib.sha256(name.as_posix().encode()).digest() + _file_digest(file))
    elif source.model is not None:
        beside = sorted(source.model.parent.glob(f"{source.model.name}*data"))
        for file in (source.model, *beside):
            total.update(_file_digest(file))
    return total.digest()


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _opaque(salt: bytes, purpose: str, value: bytes) -> str:
    return hmac.new(salt, purpose.encode() + b"\0" + value, hashlib.sha256).hexdigest()[:_DIGITS]
