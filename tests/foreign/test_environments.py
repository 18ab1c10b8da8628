"""An environment is built once, whole or not at all, and anew for other requirements."""

from pathlib import Path

import pytest

from foreign import environments
from foreign.environments import environment

pytestmark = [pytest.mark.foreign, pytest.mark.timeout(600)]

SIX = "six==1.17.0"  # a small one that needs nothing


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Environments of this test's own."""
    monkeypatch.setattr(environments, "FOLDER", tmp_path / "envs")
    return tmp_path / "envs" / "small"


def test_an_environment_is_kept_and_an_unfinished_one_is_built_anew(folder: Path) -> None:
    """A second call changes nothing; without its stamp, as after a kill, everything is made again."""
    python = environment("small", [SIX])
    assert python == folder / "bin" / "python" and python.is_file()
    mark = folder / "mark"
    mark.touch()
    assert environment("small", [SIX]) == python
    assert mark.exists()
    (folder / "built-for").unlink()
    python.unlink()
    assert environment("small", [SIX]).is_file()
    assert not mark.exists()


def test_what_cannot_be_installed_leaves_no_environment(folder: Path) -> None:
    """pip's words are told, no stamp is left, and other requirements then replace what is there."""
    with pytest.raises(RuntimeError, match="six"):
        environment("small", ["six==0.0.0.0"])
    assert not (folder / "built-for").exists()
    environment("small", [SIX])
    assert SIX in (folder / "built-for").read_text()
