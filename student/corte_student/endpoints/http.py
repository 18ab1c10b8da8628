"""The only file that knows httpx: one pool, one retry loop, one table from failures to our errors.

Rule 1: the key is a header made at the moment of sending; it goes over http only to loopback, or where the
user said so. Rule 2: no redirect is followed, no answer is read beyond its bound, no compressed answer is
opened. Rule 3: a service's own words are never repeated, only the texts of `corte_protocol.errors.WIRE`.
"""

import asyncio
import ipaddress
import itertools
import json
import random
import re
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import SplitResult, urlsplit

import httpx
from pydantic import SecretStr

from corte_protocol.errors import WIRE
from corte_student.errors import (
    BrokeContract,
    ImageRefused,
    Refused,
    SettingsError,
    TeacherError,
    Unavailable,
)

Sleep = Callable[[float], Awaitable[None]]

_ERROR_BODY_BYTES = 1 << 16
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 10.0
_CONNECT_S = 10.0
_RETRYABLE = {408, 429, 500, 502, 503, 504}
_NOBODY = "nobody listens"
_VISIBLE = re.compile(r"[\x21-\x7e]{1,4096}")


@dataclass(frozen=True, slots=True)
class Reply:
    """A 200: its body, complete and within the bound."""

    media_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class _Setback:
    """A failure after which asking again may help."""

    why: str
    wait_s: float | None = None


class _Bearer(httpx.Auth):
    """Adds the key to a request as it leaves; until then it stays inside its SecretStr."""

    def __init__(self, key: SecretStr) -> None:
        self._key = key

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        request.headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        yield request


class HttpClient:
    """Requests to one teacher, retried under one deadline each."""

    def __init__(
        self,
        url: str,
        *,
        key: SecretStr | None,
        insecure_http: bool,
        deadline_s: float,
        connections: int,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        parts = _checked_url(url)
        key = _checked_key(key)
        if key is not None and parts.scheme == "http" and not (insecure_http or _loopback(parts)):
            raise SettingsError(
                f"a key over plain http to {parts.hostname} could be read on the way: "
                "use https, or allow it with --insecure-http"
            )
        if deadline_s <= 0 or connections < 1:
            raise SettingsError("the deadline must be positive and the connections at least 1")
        self.url = url.rstrip("/")
        self._has_key = key is not None
        self._deadline_s = deadline_s
        self._sleep = sleep
        self._http = httpx.AsyncClient(
            auth=_Bearer(key) if key is not None else None,
            headers={"Accept-Encoding": "identity", "User-Agent": "corte-student"},
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            # the deadline bounds the whole; connecting alone is bounded closer, so that it can be retried
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            follow_redirects=False,
            # a proxy from the environment would read what goes over plain http
            trust_env=parts.scheme == "https",
        )

    async def aclose(self) -> None:
        """Close the pool."""
        await self._http.aclose()

    async def request(
        self,
        method: str,
        path: str,
        *,
        max_bytes: int,
        params: Mapping[str, str] | None = None,
        content: bytes | None = None,
        media_type: str | None = None,
        nobody_s: float | None = None,
    ) -> Reply:
        """One exchange, retried until it succeeds, fails for good or the deadline passes.

        A request with `content` sends one image: what the service says of its body is `ImageRefused`.
        Where nobody listens at all, `nobody_s` is the deadline.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        headers = {} if media_type is None else {"Content-Type": media_type}
        request = self._http.build_request(
            method, self.url + path, params=params, content=content, headers=headers
        )
        setback: _Setback | None = None
        try:
            async with asyncio.timeout(self._deadline_s):
                for attempt in itertools.count():
                    outcome = await self._once(request, max_bytes, content is not None)
                    if isinstance(outcome, Reply):
                        return outcome
                    setback = outcome
                    bound = self._deadline_s if setback.why != _NOBODY else nobody_s or self._deadline_s
                    pause = _pause(attempt, setback.wait_s)
                    if loop.time() + pause > began + bound:
                        break
                    await self._sleep(pause)
        except TimeoutError:
            pass  # told below, with the last setback as the reason
        raise self._unavailable(setback)

    async def _once(self, request: httpx.Request, max_bytes: int, one_image: bool) -> Reply | _Setback:
        try:
            response = await self._http.send(request, stream=True)
            try:
                good = response.status_code == 200
                body = await _read(response, max_bytes if good else _ERROR_BODY_BYTES, strict=good)
            finally:
                await response.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
            if _distrusted(exc):
                raise Refused(
                    f"the certificate of {self.url} is not trusted: name its authority in SSL_CERT_FILE"
                ) from exc
            return _Setback(_NOBODY)
        except (httpx.TransportError, httpx.StreamError) as exc:
            # its text may quote what was sent: only the kind of failure is told
            return _Setback(f"the connection broke ({type(exc).__name__})")
        if good:
            return Reply(response.headers.get("content-type", "").partition(";")[0].strip().lower(), body)
        code = _code(body)
        status = response.status_code
        if WIRE[code].retryable if code else status in _RETRYABLE:
            return _Setback(
                f"it answers {status}: {_title(code, status)}",
                _retry_after(response.headers.get("retry-after")),
            )
        raise self._refusal(status, code, one_image)

    def _refusal(self, status: int, code: str | None, one_image: bool) -> TeacherError:
        title = _title(code, status)
        if status == 401:
            if self._has_key:
                return Refused(f"{self.url} refuses the key (401): check CORTE_TEACHER_KEY")
            return Refused(f"{self.url} needs a key (401): set CORTE_TEACHER_KEY")
        if status == 403:
            return Refused(
                f"{self.url} will not disclose this much to us (403): ask for less with --disclosure"
            )
        if one_image and status in (400, 413, 415, 422):
            return ImageRefused(f"the teacher will not take this image ({status}): {title}")
        if status == 426:
            return BrokeContract(f"{self.url} speaks another version of the protocol: update the older side")
        if 300 <= status < 400:
            return Refused(f"{self.url} redirects ({status}), which is not followed: correct --teacher-url")
        if status in (404, 405):
            return Refused(f"{self.url} is no CoRTe service ({status}): check --teacher-url")
        if 400 <= status < 500:
            return Refused(f"{self.url} refuses the request ({status}): {title}")
        return BrokeContract(f"{self.url} answered with the status {status}: check --teacher-url")

    def _unavailable(self, setback: _Setback | None) -> Unavailable:
        if setback is not None and setback.why == _NOBODY:
            return Unavailable(
                f"no teacher answers at {self.url}: "
                "start it with `corte-teacher serve` or check --teacher-url"
            )
        why = "no answer came" if setback is None else setback.why
        if setback is not None and setback.wait_s:
            why += f" Ask again in {setback.wait_s:.0f} s"
        return Unavailable(
            f"{self.url} gave no prediction within {self._deadline_s:g} s, {why}: go on later with --resume"
        )


def _checked_url(url: str) -> SplitResult:
    """The URL's parts. Messages never repeat a URL that may hold a secret."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # parsed when read
        host = parts.hostname
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL):
        raise SettingsError("--teacher-url is not a URL: give http(s)://HOST[:PORT]") from None
    if parts.username is not None or parts.password is not None:
        raise SettingsError("--teacher-url must hold no user or password: the key goes in CORTE_TEACHER_KEY")
    if "?" in url or "#" in url:
        raise SettingsError("--teacher-url must hold no '?' or '#': the key goes in CORTE_TEACHER_KEY")
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        raise SettingsError("--teacher-url is not a URL: give http(s)://HOST[:PORT]")
    return parts


def _checked_key(key: SecretStr | None) -> SecretStr | None:
    """Strips the line break of a key file; refuses what no header can carry before a library quotes it."""
    if key is None:
        return None
    text = key.get_secret_value().strip()
    if not _VISIBLE.fullmatch(text):
        raise SettingsError("the key in CORTE_TEACHER_KEY is empty or holds characters that no key has")
    return SecretStr(text)


def _loopback(parts: SplitResult) -> bool:
    host = parts.hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _distrusted(exc: BaseException) -> bool:
    """Whether a failure to connect is one of the certificate."""
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


async def _read(response: httpx.Response, max_bytes: int, *, strict: bool) -> bytes:
    """The body, at most `max_bytes` of it. Beyond that: an error where `strict`, else what was read."""
    if strict and response.headers.get("content-encoding", "identity").lower() != "identity":
        raise BrokeContract("the teacher compressed its answer although it was asked not to")
    kept = bytearray()
    async for chunk in response.aiter_raw():
        kept += chunk
        if len(kept) > max_bytes:
            if strict:
                raise BrokeContract(
                    f"the teacher's answer is larger than {max_bytes} bytes: not read further"
                )
            break
    return bytes(kept)


def _code(body: bytes) -> str | None:
    """The `code` of a problem document, where it is one that both sides know."""
    try:
        problem = json.loads(body)
    except (ValueError, RecursionError):
        return None
    code = problem.get("code") if isinstance(problem, dict) else None
    return code if isinstance(code, str) and code in WIRE else None


def _title(code: str | None, status: int) -> str:
    return WIRE[code].title if code else f"status {status}"


def _retry_after(value: str | None) -> float | None:
    """Seconds, from either form that RFC 9110 allows."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}", value.strip()):
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def _pause(attempt: int, wait_s: float | None) -> float:
    """Full jitter: many clients that failed together do not come back together."""
    jitter = random.uniform(0.0, min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(attempt, 16)))
    return (wait_s or 0.0) + jitter
