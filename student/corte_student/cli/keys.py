"""Where a key comes from: a file or the environment, never argv, where other users could read it."""

import os
from pathlib import Path

from pydantic import SecretStr

from corte_student.errors import SettingsError

KEY_VARIABLE = "CORTE_TEACHER_KEY"


def read_key(file: Path | None) -> SecretStr | None:
    """The key in `file`, else in CORTE_TEACHER_KEY, else None. Raises SettingsError."""
    if file is None:
        value = os.environ.get(KEY_VARIABLE, "").strip()
        return SecretStr(value) if value else None
    try:
        value = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"cannot read the key file {file}: create it, or set {KEY_VARIABLE}") from exc
    if not value:
        raise SettingsError(f"the key file {file} is empty")
    return SecretStr(value)
