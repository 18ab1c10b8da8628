"""How a request proves who asks: a header made as it leaves, never earlier and never in a URL.

The key stays inside its SecretStr until then. What needs a vendor's own algorithm (SigV4, Google's tokens)
is loaded only where it is used, and is an extra of the distribution.
"""

import asyncio
import importlib
import logging
from collections.abc import Mapping
from typing import Any, Protocol

from pydantic import SecretStr

from corte_student.endpoints.dialect import Call
from corte_student.errors import Refused, SettingsError, Unavailable


class Signer(Protocol):
    """Headers that prove who sends `call`."""

    has_key: bool

    async def sign(self, call: Call) -> Mapping[str, str]:
        """Made anew for every attempt, since signatures and tokens age."""
        ...


class Anonymous:
    """No key."""

    has_key = False

    async def sign(self, call: Call) -> Mapping[str, str]:
        """Nothing."""
        return {}


class HeaderKey:
    """A key in a header: `Authorization: Bearer KEY` unless told otherwise (RFC 6750)."""

    has_key = True

    def __init__(self, key: SecretStr, header: str = "Authorization", prefix: str = "Bearer ") -> None:
        self._key, self._header, self._prefix = key, header, prefix

    async def sign(self, call: Call) -> Mapping[str, str]:
        """The one header."""
        return {self._header: f"{self._prefix}{self._key.get_secret_value()}"}


class AwsSigner:
    """Signature Version 4 by botocore, with the credentials that AWS's own tools would find.

    https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html
    """

    has_key = True

    def __init__(self, service: str, region: str) -> None:
        self._service, self._region = service, region
        self._session: Any = _load("botocore.session", "sagemaker").get_session()
        # at DEBUG it writes session tokens into the log
        logging.getLogger("botocore.auth").setLevel(logging.INFO)

    async def sign(self, call: Call) -> Mapping[str, str]:
        """Authorization, date and content hash. Credentials may be fetched over the network: in a thread."""
        return await asyncio.to_thread(self._signed, call)

    def _signed(self, call: Call) -> dict[str, str]:
        auth = _load("botocore.auth", "sagemaker")
        request = _load("botocore.awsrequest", "sagemaker").AWSRequest(
            method=call.method, url=call.url, data=call.content, headers=dict(call.headers)
        )
        auth.SigV4Auth(self._credentials(), self._service, self._region).add_auth(request)
        return {name: value for name, value in request.headers.items() if name not in call.headers}

    def _credentials(self) -> Any:
        try:
            credentials = self._session.get_credentials()
            frozen = None if credentials is None else credentials.get_frozen_credentials()
        except _load("botocore.exceptions", "sagemaker").BotoCoreError as exc:
            raise Refused(_NO_AWS) from exc
        if frozen is None:
            raise Refused(_NO_AWS)
        return frozen


_NO_AWS = "no AWS credentials: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


class GoogleSigner:
    """OAuth 2 tokens by google-auth, from Application Default Credentials, renewed before they end.

    https://cloud.google.com/docs/authentication/application-default-credentials
    """

    has_key = True

    def __init__(self) -> None:
        self._credentials: Any = None

    async def sign(self, call: Call) -> Mapping[str, str]:
        """A bearer token that is still good."""
        return await asyncio.to_thread(self._token)

    def _token(self) -> dict[str, str]:
        auth, errors = _load("google.auth", "vertex"), _load("google.auth.exceptions", "vertex")
        try:
            if self._credentials is None:
                scopes = ["https://www.googleapis.com/auth/cloud-platform"]
                self._credentials, _ = auth.default(scopes=scopes)
            if not self._credentials.valid:
                self._credentials.refresh(_load("google.auth.transport.requests", "vertex").Request())
        except errors.TransportError as exc:
            raise Unavailable(
                "Google's token service cannot be reached: check the network, then again"
            ) from exc
        except errors.GoogleAuthError as exc:
            raise Refused(
                "no Google credentials: run `gcloud auth application-default login`, "
                "or put an access token in CORTE_TEACHER_KEY"
            ) from exc
        return {"Authorization": f"Bearer {self._credentials.token}"}


def _load(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise SettingsError(
            f"requests to it are signed by {module.partition('.')[0]}: pip install 'corte-student[{extra}]'"
        ) from exc
