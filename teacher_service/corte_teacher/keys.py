"""Keys: 256 random bits, shown once, kept as a hash. The file also holds the salt behind opaque identities.

A key reads `ct_PREFIX_SECRET`; the prefix finds the entry, the hash of the whole key decides. Plain SHA-256
is enough, because nobody guesses 256 random bits.

The file is replaced in one step, by one writer at a time. Each write drops the keys that have expired.
"""

import hashlib
import hmac
import json
import os
import re
import secrets
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from corte_protocol import Disclosure, InvalidValue
from corte_teacher.errors import StartError

if sys.platform != "win32":
    import fcntl

_NAME = re.compile(r"[0-9A-Za-z._@-]{1,64}")
_PREFIX = re.compile(r"[0-9A-Za-z]{1,32}")
_HASH = re.compile(r"[0-9a-f]{64}")
_NO_HASH = "0" * 64
_MOST = 10**15  # counts up to here are exact as float64 too, which is how Redis scripts count
_LONGEST = timedelta(days=36_500)


@dataclass(frozen=True, slots=True)
class Grant:
    """The limits of one name, below those of the service; None is no limit of its own.

    `disclosure` names the highest level, `concurrency` is of requests in flight. Raises StartError
    when a level is unknown or a count is not between 1 and 10**15.
    """

    disclosure: str | None = None
    pixels_per_minute: int | None = None
    pixels_per_day: int | None = None
    concurrency: int | None = None

    def __post_init__(self) -> None:
        if self.disclosure is not None:
            try:
                Disclosure.parse(self.disclosure, 255)
            except InvalidValue as exc:
                raise StartError(str(exc)) from exc
        for name in ("pixels_per_minute", "pixels_per_day", "concurrency"):
            count = getattr(self, name)
            if count is not None and (type(count) is not int or not 1 <= count <= _MOST):
                raise StartError(f"{name.replace('_', ' ')} must be between 1 and 10**15, not {count!r}")


NO_OWN_LIMITS = Grant()


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One key as it is stored: never the key itself. Times are ISO 8601 text in UTC; `expires` may be None.

    `until` is `expires` as a moment. Raises StartError when a field has another form.
    """

    name: str
    prefix: str
    sha256: str
    created: str
    expires: str | None = None
    grant: Grant = NO_OWN_LIMITS
    until: datetime | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise StartError("a key's name is 1 to 64 letters, digits, '.', '_', '-' or '@'")
        if not _PREFIX.fullmatch(self.prefix) or not _HASH.fullmatch(self.sha256):
            raise StartError(f"prefix or hash of a key of {self.name} is malformed")
        _moment(self.created)
        object.__setattr__(self, "until", None if self.expires is None else _moment(self.expires))

    def live(self, now: datetime) -> bool:
        """Whether the key still opens at `now`."""
        return self.until is None or now < self.until


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The content of a key file, oldest key first.

    Raises StartError when the salt is shorter than 16 bytes, two keys have one prefix, or the keys of one
    name are more than two or differ in their grant.
    """

    salt: bytes
    entries: tuple[KeyEntry, ...]
    _by_prefix: Mapping[str, KeyEntry] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.salt) < 16:
            raise StartError("its salt is too short")
        by_prefix = {entry.prefix: entry for entry in self.entries}
        if len(by_prefix) < len(self.entries):
            raise StartError("two keys have the same prefix")
        grants: dict[str, list[Grant]] = {}
        for entry in self.entries:
            grants.setdefault(entry.name, []).append(entry.grant)
        for name, found in grants.items():
            if len(found) > 2 or len(set(found)) > 1:
                raise StartError(f"{name} has more than two keys, or keys with different grants")
        object.__setattr__(self, "_by_prefix", by_prefix)

    def holder(self, key: str, now: datetime) -> KeyEntry | None:
        """The entry of a key that is live at `now`, an aware moment, or None.

        A wrong prefix takes as long as a wrong secret.
        """
        found = None
        parts = key.split("_", 2)
        if len(parts) == 3 and parts[0] == "ct":
            found = self._by_prefix.get(parts[1])
        right = hmac.compare_digest(_hash(key), _NO_HASH if found is None else found.sha256)
        return found if found is not None and right and found.live(now) else None


def create_key(path: Path, name: str, grant: Grant = NO_OWN_LIMITS, expires: datetime | None = None) -> str:
    """Add a key for `name` to the file, which is made if need be, and return it: the only time it is seen.

    `expires` is an aware moment. Raises StartError when it is past, when the name already has a live key, or
    when the file cannot be read or written.
    """
    with _alone(path):
        now = datetime.now(UTC)
        if expires is not None and expires <= now:
            raise StartError("a key must expire in the future")
        ring = read_keys(path) if path.exists() else KeyRing(secrets.token_bytes(32), ())
        live = _live(ring, now)
        if any(entry.name == name for entry in live):
            raise StartError(
                f"{path} already holds a key for {name}: use `corte-teacher keys rotate {name}` for its "
                f"successor or `corte-teacher keys revoke {name}` to end it, or choose another name"
            )
        key, entry = _new_key(name, grant, now, expires, live)
        _write(path, KeyRing(ring.salt, (*live, entry)))
    return key


def rotate_key(path: Path, name: str, overlap: timedelta) -> str:
    """Add the successor of the one live key of `name` and return it; the older one ends after `overlap`.

    The successor has the same grant and lives as long as the older one was meant to. The older one never
    ends later than it would have. Raises StartError when `name` has no live key or two already.
    """
    if not timedelta(0) <= overlap <= _LONGEST:
        raise StartError(f"an overlap is 0 to {_LONGEST.days} days")
    with _alone(path):
        now = datetime.now(UTC)
        ring = read_keys(path)
        live = _live(ring, now)
        mine = _of(path, name, live)
        if len(mine) > 1:
            raise StartError(
                f"{path} already holds two keys for {name}: take one out with `corte-teacher keys revoke "
                f"{name} --prefix {mine[0].prefix}`, or wait until one expires"
            )
        old, end, expires = mine[0], now + overlap, None
        if old.until is not None:
            end, expires = min(end, old.until), now + (old.until - _moment(old.created))
        key, new = _new_key(name, old.grant, now, expires, live)
        kept = (replace(entry, expires=_text(end)) if entry is old else entry for entry in live)
        _write(path, KeyRing(ring.salt, (*kept, new)))
    return key


def change_grant(path: Path, name: str, grant: Grant | Callable[[Grant], Grant]) -> None:
    """Give all keys of `name` another grant, or what `grant` makes of theirs. Raises StartError when none."""
    with _alone(path):
        ring = read_keys(path)
        live = _live(ring, datetime.now(UTC))
        old = _of(path, name, live)[0].grant
        new = grant if isinstance(grant, Grant) else grant(old)
        changed = (replace(entry, grant=new) if entry.name == name else entry for entry in live)
        _write(path, KeyRing(ring.salt, tuple(changed)))


def revoke_key(path: Path, name: str, prefix: str | None = None) -> None:
    """Take all keys of `name` out of the file, or the one with `prefix`. Raises StartError when none."""
    with _alone(path):
        ring = read_keys(path)
        live = _live(ring, datetime.now(UTC))
        mine = _of(path, name, live)
        gone = [entry for entry in mine if prefix is None or entry.prefix == prefix]
        if not gone:
            prefixes = ", ".join(entry.prefix for entry in mine)
            raise StartError(f"{name} has no key with the prefix {prefix}; it has: {prefixes}")
        _write(path, KeyRing(ring.salt, tuple(entry for entry in live if entry not in gone)))


def read_keys(path: Path) -> KeyRing:
    """Read a key file. Raises StartError with the remedy."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        _require_known(data, ("salt", "keys"))
        return KeyRing(bytes.fromhex(data["salt"]), tuple(_entry(item) for item in data["keys"]))
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    except StartError as exc:
        raise StartError(f"{path} is not a key file of corte-teacher: {exc}") from exc
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise StartError(f"{path} is not a key file of corte-teacher") from exc


def watch_stamp(path: Path) -> tuple[int, int, int]:
    """Time of change in ns, inode and size: another stamp is another content. Raises StartError."""
    try:
        found = path.stat()
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    return found.st_mtime_ns, found.st_ino, found.st_size


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _moment(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.utcoffset() != timedelta(0):
        raise StartError(f"{text!r} is not a time in UTC, as 2026-11-24T12:00:00+00:00")
    return found


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def _live(ring: KeyRing, now: datetime) -> tuple[KeyEntry, ...]:
    return tuple(entry for entry in ring.entries if entry.live(now))


def _of(path: Path, name: str, live: Collection[KeyEntry]) -> list[KeyEntry]:
    """The keys of `name`, at least one. Raises StartError that tells which names there are."""
    mine = [entry for entry in live if entry.name == name]
    if not mine:
        names = ", ".join(dict.fromkeys(entry.name for entry in live)) or "none"
        raise StartError(f"{path} holds no key for {name}; it holds: {names}")
    return mine


def _new_key(
    name: str, grant: Grant, now: datetime, expires: datetime | None, live: Collection[KeyEntry]
) -> tuple[str, KeyEntry]:
    prefix = secrets.token_hex(4)
    while any(entry.prefix == prefix for entry in live):
        prefix = secrets.token_hex(4)
    key = f"ct_{prefix}_{secrets.token_urlsafe(32)}"
    until = None if expires is None else _text(expires)
    return key, KeyEntry(name, prefix, _hash(key), _text(now), until, grant)


def _unreadable(path: Path, exc: OSError) -> StartError:
    if isinstance(exc, FileNotFoundError):
        return StartError(
            f"no key file at {path}: make one with `corte-teacher keys create NAME --keys {path}`"
        )
    return StartError(f"the key file {path} cannot be read: {exc.strerror}")


def _require_known(data: Mapping[str, Any], names: Collection[str]) -> None:
    for name in data.keys() - set(names):
        raise StartError(f"its field {name!r} is unknown to this version: upgrade, or remove the field")


def _entry(data: Mapping[str, Any]) -> KeyEntry:
    """One key out of JSON; files from before there were grants have neither `expires` nor `grant`."""
    _require_known(data, [item.name for item in fields(KeyEntry) if item.init])
    grant = data.get("grant", {})
    _require_known(grant, [item.name for item in fields(Grant)])
    return KeyEntry(**{**data, "grant": Grant(**grant)})


def _record(entry: KeyEntry) -> dict[str, Any]:
    limits = {item.name: getattr(entry.grant, item.name) for item in fields(Grant)}
    stored = {item.name: getattr(entry, item.name) for item in fields(KeyEntry) if item.init}
    stored["grant"] = {name: limit for name, limit in limits.items() if limit is not None} or None
    return {name: value for name, value in stored.items() if value is not None}


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process changes this key file, and keep others out until the end.

    The lock, flock(2), lies on the folder: the file itself is replaced, and a lock file would stay behind.
    Windows has none; there, two changes at once may lose one. Raises StartError when there is no lock to get.
    """
    if sys.platform == "win32":
        yield
        return
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as exc:
        raise StartError(f"the key file {path} cannot be written: {exc.strerror}") from exc
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
        except OSError as exc:  # NFS locks no folder
            raise StartError(
                f"the folder of {path} cannot be locked ({exc.strerror}): keep the key file on a local disk"
            ) from exc
        yield
    finally:
        os.close(folder)


def _write(path: Path, ring: KeyRing) -> None:
    """Replace the file in one step, readable by its owner only from the first byte on."""
    text = json.dumps({"salt": ring.salt.hex(), "keys": [_record(e) for e in ring.entries]}, indent=2)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as exc:
        beside.unlink(missing_ok=True)
        raise StartError(f"the key file {path} cannot be written: {exc.strerror}") from exc
