"""From settings to a model, its keys and its accounts, at the start and at every reload."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from corte_protocol import InvalidValue, Limits, TeacherInfo
from corte_teacher.backends import Source, find_source, load_backend
from corte_teacher.batching import Batches
from corte_teacher.errors import StartError
from corte_teacher.identity import describe, parse_policy
from corte_teacher.keys import KeyRing, read_keys
from corte_teacher.model import Model
from corte_teacher.quotas import Quotas, open_quotas
from corte_teacher.settings import Settings


@dataclass(frozen=True)
class Teacher:
    """A loaded model with what may be known about it; `keys` None means open."""

    source: Source
    model: Model
    keys: KeyRing | None
    quotas: Quotas | None

    @property
    def info(self) -> TeacherInfo:
        """What the service as a whole may tell."""
        return self.model.info


def load_teacher(settings: Settings) -> Teacher:
    """Load everything that the settings name. Raises StartError with the remedy."""
    keys = None if settings.keys is None else read_keys(settings.keys)
    if keys is not None and not any(entry.live(datetime.now(UTC)) for entry in keys.entries):
        raise StartError(
            f"{settings.keys} holds no live key: corte-teacher keys create NAME --keys {settings.keys}"
        )
    source, info = look(settings, keys)
    model = load_model(settings, source, info)
    return Teacher(source, model, keys, quotas_for(settings, keys))


def look(settings: Settings, keys: KeyRing | None) -> tuple[Source, TeacherInfo]:
    """Which model the settings name now, and what may be told of it; nothing is loaded. Raises StartError."""
    source = find_source(settings.backend, settings.model, settings.card)
    try:
        policy = parse_policy(settings.disclosure, source.card)
    except InvalidValue as exc:
        raise StartError(f"--disclosure: {exc}") from exc
    limits = Limits(settings.max_body_bytes, settings.max_pixels)
    return source, describe(source, b"" if keys is None else keys.salt, policy, limits)


def load_model(settings: Settings, source: Source, info: TeacherInfo) -> Model:
    """Load what was looked at. Raises StartError."""
    backend = load_backend(source, info.disclosure, settings.threads)
    return Model(Batches(backend, settings.batch), info)


def quotas_for(settings: Settings, keys: KeyRing | None) -> Quotas | None:
    """The accounts, where some key has a limit in pixels. Raises StartError where they cannot be kept."""
    grants = () if keys is None else tuple(entry.grant for entry in keys.entries)
    if all(g.pixels_per_minute is None and g.pixels_per_day is None for g in grants):
        return None
    assert settings.keys is not None and keys is not None
    where = settings.quotas or str(Path(settings.keys).with_name("teacher-quotas.sqlite"))
    # replicas share the salt, and with it their accounts; other services on the same Redis do not
    return open_quotas(where, hashlib.sha256(b"quotas" + keys.salt).hexdigest()[:32])
