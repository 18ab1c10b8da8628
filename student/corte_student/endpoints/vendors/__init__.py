"""Services that others run, one file a dialect; `spoken_by` finds the one of a kind.

Each file cites the vendor's documentation of the shape it reads. Its `build` takes the URL, the user's config
and the key, and gives what is spoken there. Nothing here opens a socket.
"""

import importlib
from collections.abc import Callable

from pydantic import SecretStr

from corte_student.endpoints.config import TeacherConfig
from corte_student.endpoints.vendors.spoken import Spoken

Build = Callable[[str, TeacherConfig, SecretStr | None], Spoken]


def spoken_by(kind: str, url: str, config: TeacherConfig, key: SecretStr | None) -> Spoken:
    """What a service of `kind` (one of `config.KINDS`) at `url` speaks. Raises SettingsError for what is
    missing.
    """
    build: Build = importlib.import_module(f"{__name__}.{kind}").build
    return build(url, config, key)
