"""Bodies that mean harm, or are broken: more than 300 of them, the same at every run.

Each is refused by a service whose limits are at most 1 megapixel and 2 MiB.
"""

import gzip
import io
import pickle
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import zstandard
from PIL import Image

from corte_protocol.types import UInt8

KINDS = ("PNG", "JPEG", "WEBP")


@dataclass(frozen=True, slots=True)
class Hostile:
    """One body, and what is wrong with it."""

    name: str
    body: bytes
    media_type: str = "image/png"


def hostile_bodies() -> Iterator[Hostile]:
    """All of them."""
    yield from _truncated()
    yield from _bombs()
    yield from _wrong_pngs()
    yield from _other_formats()
    yield from _not_images()
    yield from _bent_headers()


def harmless_bodies() -> Iterator[Hostile]:
    """What looks hostile, but holds one whole picture: it may be answered, or refused."""
    good = zlib.compress(bytes(range(25)) * 8)
    yield Hostile("a checksum of the pixels that is wrong", png(8, 8, chunk(b"IDAT", good, crc=7)))
    yield Hostile("a chunk that says too much", png(8, 8)[:33] + struct.pack(">I", 1 << 30) + b"IDAT" + good)
    for kind in KINDS:
        for name, tail in (("ZIP", b"PK\3\4" + bytes(60)), ("HTML", b"<script>alert(1)</script>")):
            body = encoded(picture(), kind) + tail
            yield Hostile(f"{kind} with {name} behind it", body, f"image/{kind.lower()}")


def picture(height: int = 48, width: int = 64) -> UInt8:
    """A noisy picture."""
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def encoded(pixels: UInt8, kind: str, **more: object) -> bytes:
    """Pixels as an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **more)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    """A PNG chunk, with its own checksum or another."""
    checksum = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(
    width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2, interlace: int = 0
) -> bytes:
    """A PNG of a header and these chunks."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks) + chunk(b"IEND", b"")


def _truncated() -> Iterator[Hostile]:
    """Each format cut off at forty points in its first nine tenths."""
    for kind in KINDS:
        whole = encoded(picture(), kind)
        for n in range(40):
            end = len(whole) * 9 * n // 400
            yield Hostile(f"{kind} cut at {end}", whole[:end], f"image/{kind.lower()}")


def _bombs() -> Iterator[Hostile]:
    """Small bodies that would become large: by their header, by what is compressed in them, or both."""
    rows = zlib.compress(bytes(10_001 * 30_000), 9)
    yield Hostile("a real picture of 10000 x 10000 in one colour", png(10_000, 10_000, chunk(b"IDAT", rows)))
    for size in (1100, 5000, 20_000, 50_000, 65_535, 2**31 - 1):
        yield Hostile(f"a header of {size} x {size}", png(size, size, chunk(b"IDAT", zlib.compress(b"\0"))))
        yield Hostile(f"a header of {size} x {size}, interlaced", png(size, size, interlace=1))
        yield Hostile(f"a header of {size} x 2000", png(size, 2000, chunk(b"IDAT", rows[:1000])))
    for size in (1100, 20_000, 65_500):
        jpeg = bytearray(encoded(picture(), "JPEG"))
        at = jpeg.index(b"\xff\xc0") + 5
        jpeg[at : at + 4] = struct.pack(">HH", size, size)
        yield Hostile(f"a JPEG that says {size} x {size}", bytes(jpeg), "image/jpeg")
    for size in (1100, 16_383):
        webp = encoded(picture(), "WEBP", lossless=True)
        head = struct.pack("<I", (size - 1) | (size - 1) << 14)
        yield Hostile(f"a WebP that says {size} x {size}", webp[:21] + head + webp[25:], "image/webp")
        extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (size - 1).to_bytes(3, "little") * 2
        riff = b"RIFF" + struct.pack("<I", 4 + len(extended)) + b"WEBP" + extended
        yield Hostile(f"a WebP with a canvas of {size} x {size}", riff, "image/webp")
    inflating = zlib.compress(bytes(80 << 20), 9)
    for kind in (b"zTXt", b"iCCP", b"iTXt"):
        middle = b"\0\1\0\0\0" if kind == b"iTXt" else b"\0\0"
        text = chunk(kind, b"x" + middle + inflating)
        yield Hostile(f"80 MB of text in {kind.decode()}, no pixels", png(8, 8, text))
    yield Hostile("pixels that inflate to 80 MB, cut", png(2000, 2000, chunk(b"IDAT", inflating[:50_000])))
    yield Hostile("gzip of 80 MB", gzip.compress(bytes(80 << 20)), "image/png")
    yield Hostile("zstd of 80 MB", zstandard.compress(bytes(80 << 20)), "image/jpeg")


def _wrong_pngs() -> Iterator[Hostile]:
    """Chunks that lie about length, order, checksum, palette and size."""
    good = zlib.compress(bytes((1 + 3 * 8) * 8))
    for n in range(20):
        whole = bytearray(encoded(picture(), "PNG"))
        whole[41 + n * 3] ^= 0xFF  # from the first byte of the pixels on
        yield Hostile(f"a PNG with byte {41 + n * 3} flipped", bytes(whole))
    yield Hostile("a checksum of the header that is wrong", _flipped(png(8, 8, chunk(b"IDAT", good)), 30))
    yield Hostile("no pixels", png(8, 8))
    for height in (9, 16, 800):
        yield Hostile(f"8 rows where it says {height}", png(8, height, chunk(b"IDAT", good)))
        yield Hostile(f"8 rows of {height}, interlaced", png(8, height, chunk(b"IDAT", good), interlace=1))
    yield Hostile("no width", png(0, 8, chunk(b"IDAT", good)))
    yield Hostile("no height", png(8, 0, chunk(b"IDAT", good)))
    yield Hostile("sixteen bits", png(8, 8, chunk(b"IDAT", zlib.compress(bytes(17 * 8))), depth=16, colour=0))
    for depth in (0, 3, 5, 32, 255):
        yield Hostile(f"{depth} bits a channel", png(8, 8, chunk(b"IDAT", good), depth=depth))
    for colour in (1, 5, 7, 9, 255):
        yield Hostile(f"colour type {colour}", png(8, 8, chunk(b"IDAT", good), colour=colour))
    for length in (1 << 20, 2**31 - 1, 2**32 - 1):
        lying = struct.pack(">I", length) + b"IDAT" + good[:6]
        yield Hostile(f"a chunk that says {length} bytes", png(8, 8)[:33] + lying)
    frames = [Image.fromarray(picture()), Image.fromarray(255 - picture())]
    for kind in ("PNG", "WEBP", "GIF", "TIFF"):
        buffer = io.BytesIO()
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
        yield Hostile(
            f"several frames in a {kind}", buffer.getvalue(), "image/webp" if kind == "WEBP" else "image/png"
        )


def _other_formats() -> Iterator[Hostile]:
    """What other decoders would read, under a name that is none of theirs."""
    for kind in ("GIF", "BMP", "TIFF", "ICO", "PPM", "TGA", "PCX", "SGI", "EPS", "PDF", "JPEG2000", "DDS"):
        for media_type in ("image/png", "image/jpeg", "image/webp"):
            yield Hostile(f"{kind} as {media_type}", encoded(picture(), kind), media_type)
    words = {
        "FITS": b"SIMPLE  =                    T" + b" " * 2850,
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "HTML": b"<html><script>alert(1)</script></html>",
        "ImageMagick": b"push graphic-context\nfill 'url(https://127.0.0.1/x)'\npop graphic-context",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9999 9999\n(/etc/passwd) (r) file\n",
        "ZIP": b"PK\3\4" + bytes(60),
        "PDF and JPEG": b"%PDF-1.7\n" + encoded(picture(), "JPEG"),
        "GIF and JPEG": b"GIF89a" + encoded(picture(), "JPEG"),
        "AVIF": b"\0\0\0\x1cftypavif" + bytes(200),
        "MZ and PNG": b"MZ" + encoded(picture(), "PNG"),
    }
    for name, body in words.items():
        yield Hostile(name, body)


def _not_images() -> Iterator[Hostile]:
    """Nothing, noise, and what other programs would run."""
    rng = random.Random(1)
    yield Hostile("nothing", b"")
    for n in range(20):
        magic = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\xff\xff\xff\xffWEBPVP8 ", b"")[n % 4]
        yield Hostile(f"noise {n}", magic + rng.randbytes(1 << (n % 12)))
    yield Hostile("a pickle", pickle.dumps({"pixels": picture()}))
    yield Hostile("a numpy file", _numpy_file())
    yield Hostile("maps in maps", b"\x81\xa1a" * 5000 + b"\xc0")
    yield Hostile("zeros", bytes(1 << 20))
    yield Hostile("more than a body may have", encoded(picture(), "PNG") + bytes(3 << 20))
    segments = b"".join(b"\xff\xfe" + struct.pack(">H", 65_000) + bytes(64_998) for _ in range(20))
    yield Hostile("a JPEG of comments", b"\xff\xd8" + segments, "image/jpeg")
    tables = (b"\xff\xc4" + struct.pack(">H", 19) + bytes(17)) * 20_000
    yield Hostile("a JPEG of tables", b"\xff\xd8" + tables, "image/jpeg")


def _bent_headers() -> Iterator[Hostile]:
    """Formats whose first bytes are noise from some byte on: the header is there, what follows is not."""
    rng = random.Random(2)
    for kind in KINDS:
        whole = encoded(picture(), kind)
        for n in range(25):
            at = 12 + n
            yield Hostile(
                f"{kind}, noise from byte {at}", whole[:at] + rng.randbytes(400), f"image/{kind.lower()}"
            )


def _flipped(body: bytes, at: int) -> bytes:
    return body[:at] + bytes([body[at] ^ 0xFF]) + body[at + 1 :]


def _numpy_file() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, picture())
    return buffer.getvalue()
