"""The record of an answered request, for the tests of what observes requests."""

from corte_teacher.record import STAGES, Record

DONE = Record(
    request_id="00c0ffee00c0ffee",
    route="/v1/predict",
    started=1_763_900_000.125,
    took=0.28,
    status=200,
    code="ok",
    owner="alice",
    level="margin",
    revision="sha256:1",
    digest="ab" * 32,
    pixels=714,
    batch=2,
    stages={stage: 0.01 * number for number, stage in enumerate(STAGES, 1)},
)
