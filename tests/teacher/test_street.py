"""The embedded demonstration model, as a newcomer meets it."""

from collections.abc import Callable
from importlib.resources import files

import httpx
import pytest

from corte_protocol import decode_info, decode_prediction
from corte_protocol.types import UInt8
from serving import running_teacher

missing = not (files("corte_teacher.backends") / "street.onnx").is_file()


@pytest.mark.skipif(missing, reason="STREET MODEL MISSING: backends/street.onnx is not packaged")
def test_serve_without_arguments_answers(pixels: UInt8, encode: Callable[..., bytes]) -> None:
    """`corte-teacher serve` alone hides the street model behind `margin`, keyless on loopback."""
    with running_teacher() as url:
        info = decode_info(httpx.get(f"{url}/v1/info").content)
        assert str(info.disclosure) == "margin" and len(info.classes) >= 9
        answer = httpx.post(
            f"{url}/v1/predict", content=encode(pixels), headers={"content-type": "image/png"}, timeout=20
        )
        assert decode_prediction(answer.content, max_pixels=1 << 20).classes.shape == (2, 21, 34)
