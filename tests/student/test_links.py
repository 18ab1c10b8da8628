"""Files that an answer links to: fetched over https from the hosts allowed, without the key.

Real TLS servers on loopback, with certificates of an authority made for each run of the tests.
"""

import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import trustme
from starlette.requests import Request
from starlette.responses import Response

from corte_student.endpoints.http import Broken, Links
from corte_student.errors import BrokeContract
from replaying import Replay, replay

FILE = b"\x89PNG\r\n\x1a\n and so on"
Serve = Callable[..., Replay]


async def answer(request: Request, body: bytes) -> Response:
    """A file, whoever asks; a few paths misbehave."""
    path = request.url.path
    if path == "/moved":
        return Response(status_code=302, headers={"Location": "https://localhost:1/elsewhere"})
    if path == "/large":
        return Response(b"x" * 100_000)
    if path == "/packed":
        return Response(FILE, headers={"Content-Encoding": "gzip"})
    if path == "/gone":
        return Response(b"<Error>expired</Error>", 403)
    return Response(FILE, media_type="image/png", headers={"Set-Cookie": "who=you; Path=/"})


@pytest.fixture
def authority(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> trustme.CA:
    """The one authority that is trusted, named in SSL_CERT_FILE as a user would."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return ca


@pytest.fixture
def serve(authority: trustme.CA, tmp_path: Path) -> Iterator[Serve]:
    """Starts servers: `serve("localhost")` has a certificate for that name."""
    started: list[AbstractContextManager[Replay]] = []

    def start(*names: str, ca: trustme.CA | None = None) -> Replay:
        leaf = (ca or authority).issue_cert(*names)
        cert, key = tmp_path / f"cert{len(started)}.pem", tmp_path / f"key{len(started)}.pem"
        key.write_bytes(leaf.private_key_pem.bytes())
        cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        context = replay(answer, cert=(str(cert), str(key)))
        started.append(context)
        return context.__enter__()

    yield start
    for context in started:
        context.__exit__(None, None, None)


class Names:
    """A name server: what is `known`, and what was `asked`."""

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = {}
        self.asked: list[str] = []


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Stands before the resolver of the system, which still knows what this one does not."""
    served, system = Names(), socket.getaddrinfo

    def look_up(host: str, *args: Any, **kwargs: Any) -> Any:
        if host not in served.known:
            return system(host, *args, **kwargs)
        served.asked.append(host)
        return [system(address, *args, **kwargs)[0] for address in served.known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return served


@asynccontextmanager
async def links(*hosts: str, private: bool = True) -> AsyncIterator[Links]:
    """Opened and closed."""
    opened = Links(hosts, private=private)
    try:
        yield opened
    finally:
        await opened.aclose()


def at(server: Replay, path: str = "/mask.png", host: str = "localhost", scheme: str = "https") -> str:
    """A URL of `server` under another name."""
    return f"{scheme}://{host}:{server.url.rpartition(':')[2]}{path}"


async def test_a_file_is_fetched_from_an_allowed_host(serve: Serve) -> None:
    """Whole, with its media type; the query, which often is the signature, is kept."""
    server = serve("localhost")
    async with links("localhost") as opened:
        reply = await opened.fetch(at(server, "/a/b.png?sig=A%2BB%3D&x=1"), 1000)
    assert not isinstance(reply, Broken)
    assert (reply.status, reply.media_type, reply.body) == (200, "image/png", FILE)
    assert server.seen[0].target.endswith("/a/b.png?sig=A%2BB%3D&x=1")
    assert server.seen[0].headers["host"] == at(server, "").removeprefix("https://")


async def test_nothing_but_the_question_is_sent(serve: Serve) -> None:
    """No key, no cookie that an earlier file set, no referrer, no body; a GET."""
    server = serve("localhost")
    async with links("localhost") as opened:
        for _ in range(2):
            await opened.fetch(at(server), 1000)
    for seen in server.seen:
        assert seen.method == "GET"
        assert not seen.body
        assert set(seen.headers) <= {"host", "accept", "accept-encoding", "user-agent", "connection"}
        assert seen.headers["user-agent"] == "corte-student"
        assert seen.headers["accept-encoding"] == "identity"


async def test_a_wildcard_is_any_host_below(serve: Serve, names: Names) -> None:
    """`*.example.com` allows cdn.example.com, not example.com itself, nor what only ends alike."""
    names.known["cdn.example.com"] = ["127.0.0.1"]
    server = serve("cdn.example.com")
    async with links("*.example.com") as opened:
        for host in ("example.com", "badexample.com", "cdn.example.com.evil.org"):
            with pytest.raises(BrokeContract, match="link_hosts"):
                await opened.fetch(at(server, host=host), 1000)
        reply = await opened.fetch(at(server, host="CDN.example.com"), 1000)
    assert not isinstance(reply, Broken)
    assert reply.body == FILE
    assert names.asked == ["cdn.example.com"]


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/mask.png",
        "HTTP://localhost/mask.png",
        "ftp://localhost/mask.png",
        "file:///etc/passwd",
        "//localhost/mask.png",
        "mask.png",
        "",
        "https:///mask.png",
        "https://user@localhost/mask.png",
        "https://:secret@localhost/mask.png",
        "https://localhost\\@example.com/mask.png",
    ],
)
async def test_only_plain_https_is_followed(url: str) -> None:
    """No other scheme, no user or password."""
    async with links("localhost", "example.com") as opened:
        with pytest.raises(BrokeContract, match="plain https"):
            await opened.fetch(url, 1000)


@pytest.mark.parametrize(
    "url",
    [
        "https://localhost:port/mask.png",
        "https://localhost:99999/mask.png",
        "https://[::1/mask.png",
        "https://local\x1b[31mhost/mask.png",
        "https://localhost%2eexample.com/mask.png",
        "https://münchen.example.com/mask.png",
        "https://localhost/mask.png\x00",
        "https://localhost/\ud800",
    ],
)
async def test_what_is_no_url_is_told_as_that(url: str) -> None:
    """One line, without what a terminal would obey, and nothing is sent."""
    async with links("localhost", "*.example.com") as opened:
        with pytest.raises(BrokeContract) as failure:
            await opened.fetch(url, 1000)
    assert str(failure.value) == "the answer links to something that is no URL"


async def test_another_host_is_named_with_the_remedy() -> None:
    """Nothing is resolved or sent."""
    async with links("localhost") as opened:
        with pytest.raises(BrokeContract, match=r"evil\.example: add it to link_hosts"):
            await opened.fetch("https://evil.example/mask.png", 1000)
    async with links() as opened:
        with pytest.raises(BrokeContract, match="link_hosts"):
            await opened.fetch("https://localhost/mask.png", 1000)


INSIDE = [
    "127.0.0.1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::",
    "fe80::1",
    "fec0::1",
    "fd00:ec2::254",
    "ff02::1",
]


@pytest.mark.parametrize("address", INSIDE)
async def test_an_address_inside_a_network_is_refused(address: str) -> None:
    """Even where the host is allowed: an answer cannot lead to the machine's own network or metadata."""
    host = f"[{address}]" if ":" in address else address
    async with links(address, private=False) as opened:
        with pytest.raises(BrokeContract, match="inside a network"):
            await opened.fetch(f"https://{host}/latest/meta-data", 1000)


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "127.1", "0177.0.0.1"])
async def test_other_spellings_of_an_address_are_refused_as_well(host: str) -> None:
    """What the resolver takes for 127.0.0.1 is 127.0.0.1; what it does not know is not found."""
    async with links(host, private=False) as opened:
        try:
            reply = await opened.fetch(f"https://{host}/mask.png", 1000)
        except BrokeContract as failure:
            assert "inside a network" in str(failure)
        else:
            assert reply == Broken("nobody listens", sent=False)


async def test_a_name_that_resolves_inside_is_refused(serve: Serve) -> None:
    """The address counts, not the name, and nothing arrives there."""
    server = serve("localhost")
    async with links("localhost", private=False) as opened:
        with pytest.raises(BrokeContract, match="localhost, which is an address inside a network"):
            await opened.fetch(at(server), 1000)
    assert server.seen == []


@pytest.mark.parametrize(
    "addresses", [["10.0.0.7"], ["93.184.216.34", "10.0.0.7"], ["93.184.216.34", "::ffff:10.0.0.7"]]
)
async def test_one_address_inside_spoils_a_name(names: Names, addresses: list[str]) -> None:
    """Also as the second of several: another answer of the name server may put it first."""
    names.known["cdn.example.com"] = addresses
    async with links("*.example.com", private=False) as opened:
        with pytest.raises(BrokeContract, match="inside a network"):
            await opened.fetch("https://cdn.example.com/mask.png", 1000)
    assert names.asked == ["cdn.example.com"]


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34", "64:ff9b::5db8:d822"]
)
async def test_a_public_address_is_followed(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also through NAT64, where IPv4 is all there is. Nothing is sent: the way there is cut."""
    tried = []

    async def cut(*_: object, **__: object) -> None:
        tried.append(address)
        raise OSError("cut")

    monkeypatch.setattr("anyio.connect_tcp", cut)
    host = f"[{address}]" if ":" in address else address
    async with links(address, private=False) as opened:
        assert await opened.fetch(f"https://{host}/mask.png", 1000) == Broken("nobody listens", sent=False)
    assert tried


@pytest.mark.parametrize("label", ["a" * 64, "a..b"])
async def test_a_name_that_cannot_be_looked_up_is_not_found(label: str) -> None:
    """An answer like any other failure to reach it."""
    async with links("*.invalid") as opened:
        assert await opened.fetch(f"https://{label}.invalid/", 9) == Broken("nobody listens", sent=False)


async def test_a_redirect_is_not_followed(serve: Serve) -> None:
    """It is an answer as any other, and no file."""
    server = serve("localhost")
    async with links("localhost") as opened:
        reply = await opened.fetch(at(server, "/moved"), 1000)
    assert not isinstance(reply, Broken)
    assert reply.status == 302
    assert len(server.seen) == 1


async def test_a_file_that_is_too_large_is_cut(serve: Serve) -> None:
    """Beyond its bound nothing is read; exactly at it everything is."""
    server = serve("localhost")
    async with links("localhost") as opened:
        with pytest.raises(BrokeContract, match="larger than 99999 bytes"):
            await opened.fetch(at(server, "/large"), 99_999)
        reply = await opened.fetch(at(server, "/large"), 100_000)
    assert not isinstance(reply, Broken)
    assert len(reply.body) == 100_000


async def test_a_compressed_file_is_not_opened(serve: Serve) -> None:
    """A few bytes could become gigabytes."""
    server = serve("localhost")
    async with links("localhost") as opened:
        with pytest.raises(BrokeContract, match="compressed"):
            await opened.fetch(at(server, "/packed"), 1000)


async def test_a_link_that_expired_is_told_by_its_status(serve: Serve) -> None:
    """The caller decides what follows."""
    server = serve("localhost")
    async with links("localhost") as opened:
        reply = await opened.fetch(at(server, "/gone"), 1000)
    assert not isinstance(reply, Broken)
    assert reply.status == 403


async def test_a_certificate_for_another_name_is_refused(serve: Serve) -> None:
    """The name in the link counts, although the connection goes to an address."""
    server = serve("elsewhere.example", "127.0.0.1", "::1")
    async with links("localhost") as opened:
        with pytest.raises(BrokeContract, match="certificate of localhost"):
            await opened.fetch(at(server), 1000)
    assert server.seen == []


async def test_a_certificate_of_an_unknown_authority_is_refused(serve: Serve) -> None:
    """Nothing is sent."""
    server = serve("localhost", ca=trustme.CA())
    async with links("localhost") as opened:
        with pytest.raises(BrokeContract, match="not trusted"):
            await opened.fetch(at(server), 1000)
    assert server.seen == []


async def test_an_address_in_a_link_has_a_certificate_of_its_own(serve: Serve) -> None:
    """IPv4 as host: the certificate must name it."""
    good, bad = serve("127.0.0.1"), serve("localhost")
    async with links("127.0.0.1") as opened:
        reply = await opened.fetch(at(good, host="127.0.0.1"), 1000)
        assert not isinstance(reply, Broken)
        assert reply.body == FILE
        with pytest.raises(BrokeContract, match="certificate"):
            await opened.fetch(at(bad, host="127.0.0.1"), 1000)


async def test_a_proxy_of_the_environment_is_not_used(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would resolve the name again, wherever it likes."""
    server = serve("localhost")
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with links("localhost") as opened:
        reply = await opened.fetch(at(server), 1000)
    assert not isinstance(reply, Broken)
    assert reply.body == FILE


async def test_where_nobody_listens_nothing_was_sent(authority: trustme.CA) -> None:
    """A free port that nobody listens on."""
    with closing(socket.socket()) as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        async with links("localhost") as opened:
            reply = await opened.fetch(f"https://localhost:{port}/mask.png", 1000)
    assert reply == Broken("nobody listens", sent=False)


async def test_a_server_without_tls_is_no_file(authority: trustme.CA) -> None:
    """Plain http behind an https link."""
    with replay(answer) as server:
        async with links("localhost") as opened:
            assert isinstance(await opened.fetch(at(server), 1000), Broken)
        assert server.seen == []


def test_the_authority_is_not_the_systems(authority: trustme.CA) -> None:
    """Else the tests above would show nothing."""
    subjects = {str(cert["subject"]) for cert in ssl.create_default_context().get_ca_certs()}
    assert len(subjects) == 1
