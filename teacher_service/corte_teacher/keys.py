"""Keys: 256 random bits, shown once, kept as a hash. The file also holds the salt behind opaque identities.

A key reads `ct_PREFIX_SECRET`; the prefix finds the entry, the hash of the whole key decides. Plain SHA-256
is enough, because nobody guesses 256 random bits.
"""

import hashlib
import hmac
import json
import os
import re
import secrets
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from corte_teacher.errors import StartError

_NAME = re.compile(r"[0-9A-Za-z._@-]{1,64}")
_NO_HASH = "0" * 64


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One key as it is stored: never the key itself."""

    name: str
    prefix: str
    sha256: str
    created: str


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The content of a key file."""

    salt: bytes
    entries: tuple[KeyEntry, ...]

    def owner(self, key: str) -> str | None:
        """The name of the key's holder, or None; a wrong prefix takes as long as a wrong secret."""
        found = None
        parts = key.split("_", 2)
        if len(parts) == 3 and parts[0] == "ct":
            found = next((e for e in self.entries if e.prefix == parts[1]), None)
        right = hmac.compare_digest(_hash(key), found.sha256 if found else _NO_HASH)
        return found.name if found and right else None


def create_key(path: Path, name: str) -> str:
    """Add a key for `name` to the file, which is made if need be, and return it: the only time it is seen."""
    if not _NAME.fullmatch(name):
        raise StartError("a key's name is 1 to 64 letters, digits, '.', '_', '-' or '@'")
    ring = read_keys(path) if path.exists() else KeyRing(secrets.token_bytes(32), ())
    if any(entry.name == name for entry in ring.entries):
        raise StartError(f"{path} already holds a key for {name}: revoke it first, or choose another name")
    prefix = secrets.token_hex(4)
    key = f"ct_{prefix}_{secrets.token_urlsafe(32)}"
    created = datetime.now(UTC).isoformat(timespec="seconds")
    _write(path, KeyRing(ring.salt, (*ring.entries, KeyEntry(name, prefix, _hash(key), created))))
    return key


def revoke_key(path: Path, name: str) -> None:
    """Take the key of `name` out of the file. Raises StartError when there is none."""
    ring = read_keys(path)
    kept = tuple(entry for entry in ring.entries if entry.name != name)
    if len(kept) == len(ring.entries):
        names = ", ".join(entry.name for entry in ring.entries) or "none"
        raise StartError(f"{path} holds no key for {name}; it holds: {names}")
    _write(path, KeyRing(ring.salt, kept))


def read_keys(path: Path) -> KeyRing:
    """Read a key file. Raises StartError with the remedy."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        salt = bytes.fromhex(data["salt"])
        ring = KeyRing(salt, tuple(KeyEntry(**entry) for entry in data["keys"]))
    except FileNotFoundError:
        raise StartError(
            f"no key file at {path}: make one with `corte-teacher keys create NAME --keys {path}`"
        ) from None
    except OSError as exc:
        raise StartError(f"the key file {path} cannot be read: {exc.strerror}") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise StartError(f"{path} is not a key file of corte-teacher") from exc
    if len(salt) < 16:
        raise StartError(f"{path} is not a key file of corte-teacher: its salt is too short")
    return ring


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _write(path: Path, ring: KeyRing) -> None:
    """Replace the file in one step, readable by its owner only from the first byte on."""
    text = json.dumps({"salt": ring.salt.hex(), "keys": [asdict(e) for e in ring.entries]}, indent=2)
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
