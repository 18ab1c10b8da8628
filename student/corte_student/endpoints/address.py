"""Where a teacher is, and what may go there: checks of URLs and keys before anything is sent.

Rule 1: no URL holds a secret, so none can be logged or stored with one. Rule 2: a key leaves over plain http
to this machine only, unless the user said otherwise. Rule 3: a message never repeats a URL that broke rule
1.
"""

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

from pydantic import SecretStr

from corte_student.errors import SettingsError

_VISIBLE = re.compile(r"[\x21-\x7e]{1,8192}")


def checked_url(url: str) -> SplitResult:
    """The URL's parts. Raises SettingsError, which never repeats a URL that may hold a secret."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # parsed when read
        host = parts.hostname
    except ValueError:
        raise SettingsError("--teacher-url is not a URL: give http(s)://HOST[:PORT]") from None
    if parts.username is not None or parts.password is not None:
        raise SettingsError("--teacher-url must hold no user or password: the key goes in CORTE_TEACHER_KEY")
    if "?" in url or "#" in url:
        raise SettingsError("--teacher-url must hold no '?' or '#': the key goes in CORTE_TEACHER_KEY")
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        raise SettingsError("--teacher-url is not a URL: give http(s)://HOST[:PORT]")
    return parts


def checked_key(key: SecretStr | None) -> SecretStr | None:
    """Strips the line break of a key file; refuses what no header can carry before a library quotes it."""
    if key is None:
        return None
    text = key.get_secret_value().strip()
    if not _VISIBLE.fullmatch(text):
        raise SettingsError("the key in CORTE_TEACHER_KEY is empty or holds characters that no key has")
    return SecretStr(text)


def ensure_private(parts: SplitResult, *, insecure_http: bool) -> None:
    """Refuse to send a key over plain http to another machine. Raises SettingsError."""
    if parts.scheme == "http" and not (insecure_http or loopback(parts)):
        raise SettingsError(
            f"a key over plain http to {parts.hostname} could be read on the way: "
            "use https, or allow it with --insecure-http"
        )


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: requests with a key stay within one."""
    parts = urlsplit(url)
    return (
        parts.scheme,
        (parts.hostname or "").lower(),
        parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0),
    )


def loopback(parts: SplitResult) -> bool:
    """Whether a URL's host is this machine."""
    host = parts.hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
