"""A URL, a kind and a key become an endpoint; nothing is sent yet.

Strategy: the kind is what the user says (`--teacher-kind`, the config's `kind`), else what the URL can only
mean, else our own service. Code from outside (`package.module:factory`) is named on the command line only: a
file that came with a data set or a recipe must not choose what runs.
"""

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pydantic import SecretStr

from corte_protocol.routes import DEADLINE_HEADER
from corte_student.endpoints.address import checked_key, checked_url, ensure_private
from corte_student.endpoints.config import KINDS, Kind, TeacherConfig
from corte_student.endpoints.corte import CorteEndpoint
from corte_student.endpoints.endpoint import Endpoint
from corte_student.endpoints.foreign import ForeignEndpoint
from corte_student.endpoints.http import Http, Links
from corte_student.endpoints.pacing import Pacer
from corte_student.endpoints.sending import Manners, Sender
from corte_student.endpoints.signing import Anonymous, HeaderKey, Signer
from corte_student.endpoints.vendors import spoken_by
from corte_student.errors import SettingsError

_HOSTS: Final[tuple[tuple[Kind, str], ...]] = (
    ("huggingface", r"router\.huggingface\.co|.+\.endpoints\.huggingface\.cloud"),
    ("sagemaker", r"runtime\.sagemaker\..+\.amazonaws\.com(\.cn)?"),
    ("vertex", r".+-aiplatform\.googleapis\.com|.+\.prediction\.vertexai\.goog"),
    ("azureml", r".+\.inference\.ml\.azure\.(com|us)"),
    ("roboflow", r"(serverless|segment|outline|detect)\.roboflow\.com|.+\.roboflow\.cloud"),
    ("replicate", r"api\.replicate\.com"),
)


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach a teacher. `kind` is a name of KINDS, `package.module:factory`, or None to go by the URL.

    `paid`: a request costs money, so what may have been billed is not sent twice.
    """

    url: str
    kind: str | None = None
    config: TeacherConfig | None = None
    key: SecretStr | None = None
    insecure_http: bool = False
    paid: bool = False


def guess_kind(url: str) -> Kind | None:
    """The kind that a URL can only mean, or None: hosts of one vendor, and Open Inference's own path.

    Raises SettingsError for what is no URL.
    """
    parts = checked_url(url)
    host = (parts.hostname or "").lower()
    for kind, pattern in _HOSTS:
        if re.fullmatch(pattern, host):
            return kind
    return "openinference" if re.search(r"/v2/models/[^/]+", parts.path) else None


def kind_of(access: Access) -> str:
    """The kind that will be spoken. Raises SettingsError for an unknown one."""
    kind = access.kind or (access.config.kind if access.config else None) or guess_kind(access.url) or "corte"
    if kind not in KINDS and ":" not in kind:
        raise SettingsError(
            f"unknown --teacher-kind {kind!r}: choose {', '.join(KINDS)}, or package.module:factory"
        )
    return kind


def connect(
    url: str | Access,
    *,
    key: SecretStr | None = None,
    insecure_http: bool = False,
    deadline_s: float,
    connections: int,
) -> Endpoint:
    """An endpoint for the teacher at `url`. Raises SettingsError; nothing is sent yet.

    `deadline_s` bounds one request with all its retries, `connections` those in flight at once.
    """
    access = url if isinstance(url, Access) else Access(url, key=key, insecure_http=insecure_http)
    if deadline_s <= 0 or connections < 1:
        raise SettingsError("the deadline must be positive and the connections at least 1")
    kind = kind_of(access)
    if ":" in kind:
        return _from_outside(kind)(access, deadline_s, connections)
    parts = checked_url(access.url)
    secret = checked_key(access.key)
    if secret is not None:
        ensure_private(parts, insecure_http=access.insecure_http)
    if kind == "corte":
        signer: Signer = Anonymous() if secret is None else HeaderKey(secret)
        http = Http(access.url, signer, connections=connections)
        # our own service says 503 when it is full: there is no unknown limit to feel for
        manners = Manners(
            deadline_s,
            access.paid,
            "start it with `corte-teacher serve` or check --teacher-url",
            DEADLINE_HEADER,
        )
        sender = Sender(http, Pacer(connections, ramp=False), manners)
        return CorteEndpoint(sender, has_key=signer.has_key)
    config = access.config or TeacherConfig()
    spoken = spoken_by(kind, access.url, config, secret)
    if spoken.signer.has_key:
        ensure_private(parts, insecure_http=access.insecure_http)
    http = Http(access.url, spoken.signer, connections=connections)
    sender = Sender(http, Pacer(connections), Manners(deadline_s, access.paid))
    hosts = spoken.link_hosts if config.link_hosts is None else config.link_hosts
    return ForeignEndpoint(
        sender, spoken.dialect, Links(hosts), has_key=spoken.signer.has_key, revision=config.revision
    )


Factory = Callable[[Access, float, int], Endpoint]


def _from_outside(path: str) -> Factory:
    """`package.module:factory`, called with the access, the deadline and the requests in flight."""
    module, _, name = path.partition(":")
    try:
        factory: Factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as exc:
        raise SettingsError(
            f"the teacher kind {path!r} cannot be imported ({exc}): name it package.module:factory, "
            "with the package on PYTHONPATH or installed"
        ) from exc
    return factory
