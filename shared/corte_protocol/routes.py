"""The HTTP surface that both sides agree on: paths, media types, header names, versions."""

from typing import Final

PROTOCOL_VERSION: Final = 1

INFO: Final = "/v1/info"
PREDICT: Final = "/v1/predict"
HEALTH: Final = "/healthz"
READY: Final = "/readyz"

FRAME_TYPE: Final = "application/vnd.corte.frame"
PROBLEM_TYPE: Final = "application/problem+json"
IMAGE_TYPES: Final = ("image/jpeg", "image/png", "image/webp")

DISCLOSURE_QUERY: Final = "disclosure"
REQUEST_ID_HEADER: Final = "x-request-id"
REVISION_HEADER: Final = "corte-revision"
DEADLINE_HEADER: Final = "x-deadline-ms"
"""Milliseconds from the request's first byte within which its sender still wants the answer."""
