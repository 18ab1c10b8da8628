"""schemathesis against the service's own document: what a stranger's tool makes up breaks nothing."""

from pathlib import Path

import pytest

from corte_teacher.keys import create_key
from foreign.environments import SCHEMATHESIS, environment, talk
from internals import leaks
from serving import running_teacher

pytestmark = [pytest.mark.foreign, pytest.mark.timeout(600)]
EXAMPLES = 400


def test_made_up_requests_leak_nothing(tmp_path: Path) -> None:
    """Of more than 2,000 requests over all operations none is 500, and no answer holds an internal word."""
    key = create_key(tmp_path / "keys.json", "alice")
    with running_teacher(["--keys", str(tmp_path / "keys.json"), "--docs"]) as url:
        job = {"url": url, "key": key, "examples": EXAMPLES}
        found = talk(environment("schemathesis", SCHEMATHESIS), "schemathesis_fuzz.py", job, timeout=280)
    counts = {int(status): count for status, count in found["statuses"].items()}
    assert sum(counts.values()) > 2000, counts
    assert {status for status in counts if status >= 500} <= {503}, counts  # 503: deadlines of a millisecond
    assert {200, 403, 404, 422} <= set(counts)
    for answer in found["answers"]:
        assert not leaks(answer.encode()), answer
