"""Services that others run, one file a dialect; `spoken_by` finds the one of a kind.

Each file cites the vendor's documentation of the shape it reads. Its `build` takes the URL, the user's config
and the key, and gives what is spoken there. Nothing here opens a socket.
"""

from collections.abc import Callable, Mapping
from typing import Final

from pydantic import SecretStr

from corte_student.endpoints.config import TeacherConfig
from corte_student.endpoints.vendors import (
    azureml,
    custom,
    huggingface,
    openinference,
    replicate,
    roboflow,
    sagemaker,
    vertex,
)
from corte_student.endpoints.vendors.spoken import Spoken

Build = Callable[[str, TeacherConfig, SecretStr | None], Spoken]

_BUILDS: Final[Mapping[str, Build]] = {
    "openinference": openinference.build,
    "huggingface": huggingface.build,
    "sagemaker": sagemaker.build,
    "vertex": vertex.build,
    "azureml": azureml.build,
    "roboflow": roboflow.build,
    "replicate": replicate.build,
    "custom": custom.build,
}


def spoken_by(kind: str, url: str, config: TeacherConfig, key: SecretStr | None) -> Spoken:
    """What a service of `kind` (one of `config.KINDS`) at `url` speaks. Raises SettingsError."""
    return _BUILDS[kind](url, config, key)
