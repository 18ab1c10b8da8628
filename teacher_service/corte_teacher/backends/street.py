"""The embedded demonstration model: files in this package, run by the onnx backend."""

from importlib.resources import files as resources
from pathlib import Path

from corte_teacher.errors import StartError


def files() -> tuple[Path, Path]:
    """Its model and its card. Raises StartError where the installation lacks them."""
    folder = Path(str(resources("corte_teacher.backends")))
    model, card = folder / "street.onnx", folder / "street.toml"
    if not (model.is_file() and card.is_file()):
        raise StartError(
            "this installation lacks the street model: reinstall corte-teacher, or give --backend onnx"
        )
    return model, card
