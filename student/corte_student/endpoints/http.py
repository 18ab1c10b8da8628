"""The only file that knows httpx: one pool to one teacher, one exchange at a time, every failure given a
name.

Rule 1: the key is a header made at the moment of sending, and goes to the teacher's own origin only. Rule 2:
no redirect is followed, no answer is read beyond its bound, no compressed answer is opened. Rule 3: the text
of a transport error is never repeated, it may quote what was sent.
"""

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Literal
from urllib.parse import urlsplit

import httpx

from corte_student.endpoints.address import checked_url, origin
from corte_student.endpoints.dialect import Call, Reply
from corte_student.endpoints.signing import Signer
from corte_student.errors import BrokeContract, Refused, SettingsError, TeacherError

_ERROR_BODY_BYTES = 1 << 16
_CONNECT_S = 10.0
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "corte-student"}


@dataclass(frozen=True, slots=True)
class Broken:
    """No answer. `sent`: whether the request may have reached the teacher."""

    why: Literal["nobody listens", "the connection broke"]
    sent: bool
    kind: str = ""


class Http:
    """The pool. `request` answers with a Reply of any status, or with Broken."""

    def __init__(self, url: str, signer: Signer, *, connections: int) -> None:
        parts = checked_url(url)
        try:
            httpx.URL(url)
        except httpx.InvalidURL:
            raise SettingsError("--teacher-url is not a URL: give http(s)://HOST[:PORT]") from None
        self.url = url.rstrip("/")
        self._origin = origin(url)
        self._signer = signer
        self._http = httpx.AsyncClient(
            headers=_HEADERS,
            # as many as may be in flight: a task that was let through never waits for a connection
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            # the caller's deadline bounds the whole; connecting alone is bounded closer, to be retried
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            follow_redirects=False,
            # a proxy from the environment would read what goes over plain http
            trust_env=parts.scheme == "https",
            # a session would tie requests together that have nothing to do with each other
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    @property
    def has_key(self) -> bool:
        """Whether requests carry a proof of who asks."""
        return self._signer.has_key

    async def aclose(self) -> None:
        """Close the pool."""
        await self._http.aclose()

    async def request(self, call: Call) -> Reply | Broken:
        """One exchange. Raises BrokeContract for an answer not to be read, Refused for a certificate."""
        if origin(call.url) != self._origin:
            raise BrokeContract("the teacher points to another host, where the key must not go: not followed")
        signed = {**call.headers, **await self._signer.sign(call)}
        request = self._http.build_request(call.method, call.url, content=call.content, headers=signed)
        remedy = "name its authority in SSL_CERT_FILE"
        distrust = Refused(f"the certificate of {self.url} is not trusted: {remedy}")
        return await _exchange(self._http, request, call.max_bytes, distrust)


class Links:
    """Fetches files that an answer points to: https only, from allowed hosts, never with the key.

    Rule: a name is resolved once, every address it has must be a public one, and the connection goes to
    that address, so that a second answer of the name server cannot lead it elsewhere.
    """

    def __init__(self, hosts: tuple[str, ...], *, private: bool = False) -> None:
        self._hosts = hosts
        self._private = private
        self._http = httpx.AsyncClient(
            headers=_HEADERS,
            limits=httpx.Limits(max_connections=8, max_keepalive_connections=0),
            timeout=httpx.Timeout(30.0, connect=_CONNECT_S),
            follow_redirects=False,
            # no proxy: it would resolve the name again. SSL_CERT_FILE counts all the same
            trust_env=False,
            verify=httpx.create_ssl_context(),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    async def aclose(self) -> None:
        """Close the pool."""
        await self._http.aclose()

    async def fetch(self, url: str, max_bytes: int) -> Reply | Broken:
        """The file. Raises BrokeContract where the link must not be followed."""
        host, port = self._allowed(url)
        address = await self._resolved(host, port)
        if address is None:
            return Broken("nobody listens", sent=False)
        try:
            target = httpx.URL(url).copy_with(host=address)
        except (httpx.InvalidURL, UnicodeError):
            raise BrokeContract("the answer links to something that is no URL") from None
        named = f"[{host}]" if ":" in host else host
        named = named if port == 443 else f"{named}:{port}"
        request = self._http.build_request(
            "GET",
            target,
            headers={"Host": named},
            extensions={"sni_hostname": host, "timeout": _LINK_TIMEOUT},
        )
        distrust = BrokeContract(f"the certificate of {host}, which the answer links to, is not trusted")
        return await _exchange(self._http, request, max_bytes, distrust)

    def _allowed(self, url: str) -> tuple[str, int]:
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port or 443
        except ValueError:
            raise BrokeContract("the answer links to something that is no URL") from None
        if parts.scheme != "https" or not host or parts.username is not None or parts.password is not None:
            raise BrokeContract("the answer links to something that is not plain https: not fetched")
        if not _HOST.fullmatch(host):
            raise BrokeContract("the answer links to something that is no URL")
        if not any(_matches(host, pattern) for pattern in self._hosts):
            raise BrokeContract(
                f"the answer links to {host}: add it to link_hosts in --teacher-config if it is trusted"
            )
        return host, port

    async def _resolved(self, host: str, port: int) -> str | None:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):  # UnicodeError: a label that is too long
            return None
        addresses = [str(entry[4][0]) for entry in found]
        if not self._private and not all(self._public(ipaddress.ip_address(text)) for text in addresses):
            raise BrokeContract(
                f"the answer links to {host}, which is an address inside a network: not fetched"
            )
        return addresses[0]

    @classmethod
    def _public(cls, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        """Whether an address is somebody's on the internet, also where IPv6 only carries one of IPv4: mapped
        (RFC 4291), 6to4 (RFC 3056) or through NAT64 (RFC 6052).
        """
        if isinstance(address, ipaddress.IPv4Address):
            return address.is_global and not address.is_multicast
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return cls._public(inner)
        return address.is_global and address in _GLOBAL_UNICAST


_HOST = re.compile(r"[a-z0-9._:-]{1,253}")  # a name in a message stays a name
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # RFC 4291, section 2.4
_LINK_TIMEOUT: Mapping[str, float] = {"connect": _CONNECT_S, "read": 30.0, "write": 30.0, "pool": 30.0}


async def _exchange(
    http: httpx.AsyncClient, request: httpx.Request, max_bytes: int, distrust: TeacherError
) -> Reply | Broken:
    """Send and read. Raises `distrust` where the other side's certificate is not trusted."""
    try:
        return await _received(await http.send(request, stream=True), max_bytes)
    except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
        if _distrusted(exc):
            raise distrust from exc
        return Broken("nobody listens", sent=False)
    except (httpx.TransportError, httpx.StreamError) as exc:
        return Broken("the connection broke", sent=True, kind=type(exc).__name__)


async def _received(response: httpx.Response, max_bytes: int) -> Reply:
    try:
        good = response.is_success
        body = await _read(response, max_bytes if good else _ERROR_BODY_BYTES, strict=good)
    finally:
        await response.aclose()
    headers = {name.lower(): value for name, value in response.headers.items()}
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    return Reply(response.status_code, headers, media_type, body)


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


def _matches(host: str, pattern: str) -> bool:
    """`example.com` is that host, `*.example.com` any host below it."""
    pattern = pattern.lower()
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern


def _distrusted(exc: BaseException) -> bool:
    """Whether a failure to connect is one of the certificate."""
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
