"""A client that costs next to nothing: HTTP/1.1 over one kept-alive connection, no retry, no cleverness.

Written for measuring: httpx takes 2 to 6 ms of processor time a request, as much as the small model.
"""

import asyncio
import time
from dataclasses import dataclass
from io import BytesIO
from urllib.parse import urlsplit

import numpy as np
from PIL import Image as Pillow


@dataclass(frozen=True, slots=True)
class Said:
    """One answer: `status` 0 and the reason in `body` where there was none. `took` is seconds."""

    status: int
    headers: dict[str, str]
    body: bytes
    took: float


class Connection:
    """One connection, opened at the first request and again after it was closed."""

    def __init__(self, url: str, key: str | None = None) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 80)
        self._key = key
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> Said:
        """Send one request and read its answer; a connection that ends first is an answer of status 0."""
        began = time.perf_counter()
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(*self._address, limit=1 << 20)
            reader, writer = self._streams
            writer.write(self._head(path, len(body), headers or {}) + body)
            status, found = await _head_of(reader)
            content = await reader.readexactly(int(found.get("content-length", "0")))
        except (OSError, asyncio.IncompleteReadError) as exc:
            self.close()
            return Said(0, {}, repr(exc).encode(), time.perf_counter() - began)
        except asyncio.CancelledError:
            self.close()
            raise
        if found.get("connection") == "close":
            self.close()
        return Said(status, found, content, time.perf_counter() - began)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    def _head(self, path: str, length: int, headers: dict[str, str]) -> bytes:
        lines = [
            f"POST {path} HTTP/1.1",
            f"host: {self._address[0]}:{self._address[1]}",
            "content-type: image/jpeg",
            f"content-length: {length}",
            *([f"authorization: Bearer {self._key}"] if self._key else []),
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _head_of(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in head[1:] if line)
    return int(head[0].split()[1]), {name.lower(): value.strip() for name, _, value in pairs}


def jpeg(height: int, width: int, seed: int) -> bytes:
    """An encoded picture of blocks, the same for the same seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(1, height // 16), max(1, width // 16), 3), np.uint8)
    buffer = BytesIO()
    Pillow.fromarray(coarse).resize((width, height), Pillow.Resampling.BICUBIC).save(
        buffer, "JPEG", quality=92
    )
    return buffer.getvalue()


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of `values` lie; the largest for 1."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
