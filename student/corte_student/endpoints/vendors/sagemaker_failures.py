"""What SageMaker's errors mean: told by their names, of which the status says little.

    https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html#API_runtime_InvokeEndpoint_Errors
    https://docs.aws.amazon.com/sagemaker/latest/APIReference/CommonErrors.html
    https://smithy.io/2.0/aws/protocols/aws-restjson1-protocol.html#operation-error-serialization

Rule: a message is searched, never repeated: it holds account numbers and what the container said.
"""

import json
import re
from datetime import UTC, datetime
from typing import Final, Literal

from corte_student.endpoints.dialect import Reply, Verdict
from corte_student.endpoints.hints import wait_of
from corte_student.endpoints.vendors.inner import model_failed
from corte_student.errors import ImageRefused, Refused, Unavailable

_THROTTLED: Final = re.compile(
    r"Throttl(ing|ed)(Exception)?|RequestThrottled(Exception)?|TooManyRequestsException|RequestLimitExceeded|SlowDown"
)
_CREDENTIALS: Final = re.compile(
    r"(UnrecognizedClient|InvalidSignature|ExpiredToken|MissingAuthenticationToken|IncompleteSignature)(Exception)?"
    r"|InvalidClientTokenId|SignatureDoesNotMatch|RequestExpired"
)
_TOO_LARGE: Final = re.compile(r"oversize|too large|exceed|content length", re.IGNORECASE)


def failure(reply: Reply) -> Verdict | None:
    """The verdict on what is no answer; None where the ordinary table rules."""
    if 200 <= reply.status < 300:
        return None
    body = _fields(reply.body)
    code = _code(reply, body)
    if code == "ModelError" or (not code and reply.status == 424):
        inner = body.get("OriginalStatusCode")
        return model_failed(reply, inner if isinstance(inner, int) else None)
    if _THROTTLED.fullmatch(code):
        return _again(reply, "it allows no more for now", "refused")
    if code == "ModelNotReadyException":
        return _again(reply, "its model is being loaded", "overloaded")
    if code == "InternalDependencyException" or reply.status == 530:
        return _again(reply, "a service that it depends on failed", "overloaded", billed=True)
    if code in ("AccessDeniedException", "AccessDenied", "NotAuthorized"):
        return Verdict(
            f"does not let these AWS credentials ask ({reply.status}): allow them sagemaker:InvokeEndpoint",
            Refused,
        )
    if reply.status in (401, 403) or _CREDENTIALS.fullmatch(code):
        return Verdict(
            f"refuses the AWS credentials ({reply.status}): check AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, renew an expired session, and set this machine's clock",
            Refused,
        )
    if code in ("ValidationError", "ValidationException"):
        if _TOO_LARGE.search(str(body.get("message") or body.get("Message"))):
            return Verdict("the teacher will not take this image (400): it is too large", ImageRefused)
        return Verdict(
            "refuses the request (400): check the endpoint's name in --teacher-url, "
            "and target_variant and inference_component in --teacher-config",
            Refused,
        )
    return None


def _again(
    reply: Reply, why: str, pace: Literal["refused", "overloaded"], *, billed: bool = False
) -> Verdict:
    wait_s = wait_of(reply.headers, datetime.now(UTC))
    return Verdict(
        f"it answers {reply.status}: {why}", Unavailable, again=True, billed=billed, wait_s=wait_s, pace=pace
    )


def _fields(body: bytes) -> dict[str, object]:
    """The error's JSON object; nothing of what is none."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _code(reply: Reply, body: dict[str, object]) -> str:
    """The error's bare name: `namespace#Name:url` in a header or in the body."""
    told = reply.headers.get("x-amzn-errortype") or body.get("__type") or body.get("code") or ""
    return str(told).partition(":")[0].rpartition("#")[2]
