"""A real source model trained by others, on a real street: DeepLab (Cityscapes) asked about CamVid."""

import os
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from corte_protocol import decode_info, decode_prediction
from serving import running_teacher

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("CORTE_TEST_DATA", ROOT / "../shared/data")).resolve()
MODEL = DATA / "teachers" / "deeplab_cityscapes.onnx"


@pytest.mark.real_data
@pytest.mark.skipif(not MODEL.is_file(), reason=f"REAL DATA MISSING: no {MODEL}; set CORTE_TEST_DATA")
def test_deeplab_sees_road_and_sky_on_camvid() -> None:
    """Served with the card in examples/, most of the true road and sky is called so."""
    picture = sorted((DATA / "camvid" / "val").iterdir())[0]
    truth = np.asarray(Image.open(DATA / "camvid" / "valannot" / f"{picture.stem}.png"))
    card = ROOT / "examples" / "cards" / "deeplab_cityscapes.toml"
    args = ["--backend", "onnx", "--model", str(MODEL), "--card", str(card), "--open"]
    with running_teacher(args) as url:
        info = decode_info(httpx.get(f"{url}/v1/info").content)
        kind = {"content-type": "image/jpeg"}
        answer = httpx.post(f"{url}/v1/predict", content=picture.read_bytes(), headers=kind, timeout=60)
    got = decode_prediction(answer.content, max_pixels=1 << 20)
    assert len(info.classes) == 19 and got.labels.shape == truth.shape
    for name, camvid_id in (("road", 3), ("sky", 0)):
        right = got.labels[truth == camvid_id] == info.classes.index(name)
        assert right.mean() > 0.7, name
