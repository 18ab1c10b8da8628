"""What SageMaker sends, as bytes, and a check of what it is sent: the signature, computed anew by botocore.

https://docs.aws.amazon.com/sagemaker/latest/dg/cdf-training.html (the Record message)
https://github.com/dmlc/dmlc-core/blob/main/include/dmlc/recordio.h (the frame around it)
https://smithy.io/2.0/aws/protocols/aws-restjson1-protocol.html#operation-error-serialization
"""

import json
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from starlette.requests import Request
from starlette.responses import Response

from corte_protocol.types import UInt8
from student.dialect_contract import CLASSES, KEY

ID = "AKIDEXAMPLE"
REGION = "eu-west-1"
HOST = "https://runtime.sagemaker.eu-west-1.amazonaws.com"


def varint(number: int) -> bytes:
    """A protobuf varint."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


def chunk(field: int, data: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return varint(field << 3 | 2) + varint(len(data)) + data


def feature(name: str, value: bytes) -> bytes:
    """One entry of `map<string, Value> features = 1`."""
    return chunk(1, chunk(1, name.encode()) + chunk(2, value))


def recordio(scores: npt.NDArray[np.float32], shape: tuple[int, ...] | None = None) -> bytes:
    """`target` (float32_tensor = 2) and `shape` (int32_tensor = 7) in one Record in one RecordIO frame."""
    numbers = b"".join(varint(size) for size in shape or (1, *scores.shape))
    target = chunk(2, chunk(1, scores.astype("<f4").tobytes()))
    record = feature("target", target) + feature("shape", chunk(7, chunk(1, numbers)))
    return struct.pack("<II", 0xCED7230A, len(record)) + record + b"\0" * (-len(record) % 4)


def likelihoods(labels: UInt8) -> npt.NDArray[np.float32]:
    """Probabilities [C, H, W] whose best class is `labels`: 0.625, then 0.25 and 0.125."""
    order = (labels[None] + np.arange(len(CLASSES))[:, None, None]) % len(CLASSES)
    scores = np.empty(order.shape, np.float32)
    values = np.array([0.625, 0.25, 0.125], np.float32)[:, None, None]
    np.put_along_axis(scores, order, np.broadcast_to(values, order.shape), axis=0)
    return scores


def error(status: int, code: str, message: str | None = None, **fields: object) -> Response:
    """An error of the restJson1 protocol, its code in the header."""
    return Response(
        json.dumps({"message": message, **fields}),
        status,
        {"x-amzn-ErrorType": f"{code}:http://internal.amazon.com/coral/com.amazonaws.sagemaker/"},
        "application/json",
    )


def model_error(inner: int) -> Response:
    """The container's failure as InvokeEndpoint documents it."""
    return error(
        424,
        "ModelError",
        f'Received client error ({inner}) from primary with message "it said so"',
        OriginalStatusCode=inner,
        OriginalMessage="it said so",
        LogStreamArn="arn:aws:logs:eu-west-1:111122223333:log-group:/aws/sagemaker/Endpoints/streets",
    )


def environment(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Credentials from the environment alone, whatever this machine has."""
    for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)


def well_signed(request: Request, body: bytes, service: str = "sagemaker") -> bool:
    """Whether the signature is that of what arrived, computed anew from the secret by botocore."""
    scheme, _, rest = request.headers.get("authorization", "").partition(" ")
    told = dict(part.strip().split("=", 1) for part in rest.split(",")) if rest else {}
    date = request.headers.get("x-amz-date", "")
    if (
        scheme != "AWS4-HMAC-SHA256"
        or told["Credential"] != f"{ID}/{date[:8]}/{REGION}/{service}/aws4_request"
    ):
        return False
    names = told["SignedHeaders"].split(";")
    if not {"host", "content-type", "accept", "x-amz-date"} <= set(names):
        return False
    headers = {name: request.headers[name] for name in names}
    again = AWSRequest(method=request.method, url=str(request.url), data=body, headers=headers)
    again.context["timestamp"] = date
    signer = SigV4Auth(Credentials(ID, KEY), service, REGION)
    signature: str = signer.signature(signer.string_to_sign(again, signer.canonical_request(again)), again)
    return signature == told["Signature"]
