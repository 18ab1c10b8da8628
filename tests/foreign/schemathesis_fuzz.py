"""Requests made up by schemathesis from the service's own OpenAPI document, and what they were answered.

Runs in an environment of its own. Job: {"url", "key", "examples"}; prints {"count", "statuses", "failures"}.
"""

import json
import sys
from collections import Counter

import schemathesis  # type: ignore[import-not-found]
from hypothesis import HealthCheck, Phase, given, settings


def main() -> None:
    """Fuzz every operation, and report statuses and whole answers that are 500 or beyond."""
    job = json.load(sys.stdin)
    schema = schemathesis.openapi.from_url(f"{job['url']}/openapi.json")
    statuses: Counter[int] = Counter()
    answers: set[str] = set()
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=job["examples"],
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def fuzz(case: schemathesis.Case) -> None:
            case.headers = {**(case.headers or {}), "Authorization": f"Bearer {job['key']}"}
            answer = case.call()
            statuses[answer.status_code] += 1
            kind = (answer.headers.get("content-type") or [""])[0]
            head = f"{answer.status_code} " + "\n".join(
                f"{k}: {v}" for k, v in answer.headers.items() if k != "x-request-id"
            )
            binary = "vnd.corte.frame" in kind or "octet-stream" in kind
            answers.add(head if binary else f"{head}\n\n{json.dumps(strip(answer.content))}")

        fuzz()
    print(json.dumps({"statuses": statuses, "answers": sorted(answers)}))


def strip(content: bytes) -> str:
    """An answer's body without its request id, so that equal answers are counted once."""
    try:
        message = json.loads(content)
    except ValueError:
        return content.decode("latin-1")
    if isinstance(message, dict):
        message.pop("request_id", None)
    return json.dumps(message)


main()
