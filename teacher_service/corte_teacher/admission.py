"""Who may ask, and how much a question may weigh. Nothing here decodes a pixel before its size is known."""

import asyncio
from io import BytesIO

import numpy as np
from PIL import Image as Pillow
from starlette.requests import Request

from corte_protocol import Disclosure, Image, InvalidValue, Limits
from corte_protocol.routes import DISCLOSURE_QUERY, IMAGE_TYPES
from corte_teacher.errors import (
    Forbidden,
    InvalidRequest,
    NotReady,
    SlowRequest,
    TooLarge,
    Unauthorized,
    Unreadable,
    UnsupportedMedia,
)
from corte_teacher.keys import KeyRing

_FORMATS = ("JPEG", "PNG", "WEBP")
_EIGHT_BIT = {"RGB", "L", "1", "P", "PA", "LA", "RGBA", "RGBX", "CMYK", "YCbCr"}


def require_key(request: Request, keys: KeyRing | None) -> None:
    """Let a bearer of a known key pass, and everybody where `keys` is None. Raises Unauthorized."""
    if keys is None:
        return
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or keys.owner(key.strip()) is None:
        raise Unauthorized("no known key")


def asked_level(request: Request, policy: Disclosure, classes: int) -> Disclosure:
    """The level in the query, by default the policy. Raises InvalidRequest or Forbidden.

    Any other parameter is an error: a misspelt request for less must not be answered with more.
    """
    query = request.query_params.multi_items()
    if not query:
        return policy
    if len(query) > 1 or query[0][0] != DISCLOSURE_QUERY:
        raise InvalidRequest("unknown or repeated query parameter")
    return allowed_level(query[0][1], policy, classes)


def allowed_level(text: str, policy: Disclosure, classes: int) -> Disclosure:
    """The level named `text`, if the policy allows it. Raises InvalidRequest or Forbidden."""
    try:
        asked = Disclosure.parse(text, classes)
    except InvalidValue as exc:
        raise InvalidRequest("unknown level") from exc
    if not policy.allows(asked):
        raise Forbidden(f"{asked} was asked for, the policy is {policy}")
    return asked


def require_image(request: Request) -> None:
    """Let a body pass that is declared an image. Raises UnsupportedMedia."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in IMAGE_TYPES:
        raise UnsupportedMedia("not declared as an image")


def require_ready(first: "asyncio.Future[None]") -> None:
    """Let a question pass once the `first` forward is done. Raises NotReady."""
    if not first.done():
        raise NotReady("the first forward is not done")
    if first.cancelled() or first.exception() is not None:
        raise NotReady("the first forward failed")


async def read_body(request: Request, limits: Limits, timeout_s: float) -> bytes:
    """The body, if it is within the limits; cut off at the first byte beyond them."""
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > limits.max_body_bytes:
        raise TooLarge("declared beyond the limit")
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.max_body_bytes:
                    raise TooLarge("sent beyond the limit")
    except TimeoutError as exc:
        raise SlowRequest("body too slow") from exc
    return bytes(body)


def read_image(body: bytes | memoryview, limits: Limits) -> Image:
    """One image as it was encoded: never rotated, alpha dropped, first reduced to RGB. Blocking.

    Raises Unreadable, TooLarge before anything is decoded, or InvalidRequest for animations and for
    grey levels beyond 8 bits, which have no plain meaning in RGB.
    """
    try:
        picture = Pillow.open(BytesIO(body), formats=_FORMATS)
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning) as exc:
        raise TooLarge("too many pixels") from exc
    except Exception as exc:  # a decoder on hostile bytes raises anything from OSError to struct.error
        raise Unreadable("no readable header") from exc
    with picture:
        if picture.width * picture.height > limits.max_pixels:
            raise TooLarge("too many pixels")
        if picture.mode not in _EIGHT_BIT:
            raise InvalidRequest(f"mode {picture.mode}")
        if picture.format != "MPO" and getattr(picture, "n_frames", 1) != 1:
            raise InvalidRequest("more than one frame")
        try:
            if picture.mode in ("P", "PA"):  # straight to RGB, Pillow warns about transparent palettes
                pixels = np.asarray(picture.convert("RGBA").convert("RGB"))
            else:
                pixels = np.asarray(picture.convert("RGB"))
        except Exception as exc:  # as above: truncated, corrupt, or worse
            raise Unreadable("no readable pixels") from exc
    return Image(pixels)
