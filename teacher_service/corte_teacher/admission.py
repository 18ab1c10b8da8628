"""What a question may ask for and weigh, checked from its first byte on, the cheap checks first."""

import asyncio

from starlette.requests import Request

from corte_protocol import Disclosure, InvalidValue, Limits
from corte_protocol.routes import DISCLOSURE_QUERY, IMAGE_TYPES
from corte_teacher.errors import (
    BadRequest,
    Forbidden,
    InvalidRequest,
    SlowRequest,
    TooLarge,
    UnsupportedMedia,
)
from corte_teacher.places import Place


def asked_level(request: Request, policy: Disclosure, classes: int) -> Disclosure:
    """The level in the query, by default the policy. Raises InvalidRequest or Forbidden.

    Any other parameter is an error: a misspelt request for less must not be answered with more.
    """
    if not request.scope["query_string"]:
        return policy
    query = request.query_params.multi_items()
    if len(query) != 1 or query[0][0] != DISCLOSURE_QUERY:
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
    """Let a body pass that is declared an image, as it is. Raises UnsupportedMedia."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in IMAGE_TYPES:
        raise UnsupportedMedia("not declared as an image")
    require_plain(request)


def require_plain(request: Request) -> None:
    """Let a body pass that is not compressed once more. Raises UnsupportedMedia.

    A compressed body would have to be inflated to be counted, and images and tensors gain nothing.
    """
    codings = request.headers.getlist("content-encoding")
    if codings and {c.strip().lower() for c in codings} - {"identity", ""}:
        raise UnsupportedMedia("a compressed body")


async def read_body(request: Request, limits: Limits, timeout_s: float, place: Place) -> bytes:
    """The body, if it is within the limits; cut off at the first byte beyond them.

    Raises TooLarge, BadRequest, SlowRequest, and Overloaded where all bodies together are too large.
    """
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal():
        raise BadRequest("a content-length that is no number")
    if int(declared) > limits.max_body_bytes:
        raise TooLarge("declared beyond the limit")
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limits.max_body_bytes:
                    raise TooLarge("sent beyond the limit")
                place.hold(len(chunk))
                pieces.append(chunk)
    except TimeoutError as exc:
        raise SlowRequest("body too slow") from exc
    return b"".join(pieces)
