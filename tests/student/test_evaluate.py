"""One scoring code for a student and for the black box."""

import asyncio
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from typer.testing import CliRunner

import formats
from corte_protocol import VOID
from corte_student.cli import app
from corte_student.data.folder import read_pixels
from corte_student.data.layouts.cityscapes import CLASSES
from corte_student.errors import DataError
from corte_student.evaluate import predict_pixels, score, student_predicts
from corte_student.metrics import ABSENT_RULE, CLASS_LISTS
from small_run import save_images, save_label, save_run, small_student

UInt8 = npt.NDArray[np.uint8]
Pairs = list[tuple[Path, Path]]


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    """Five labelled images of odd sizes."""
    sizes = {f"{i}.png": (9 + i, 17 + 2 * i) for i in range(5)}
    rng = np.random.default_rng(1)
    return [
        (image, save_label(tmp_path / "l" / image.name, rng.choice([0, 1, 2, VOID], sizes[image.name])))
        for image in save_images(tmp_path / "i", sizes)
    ]


def test_a_student_is_scored_at_the_size_of_each_image(pairs: Pairs) -> None:
    """The matrix counts every labelled pixel, with the labels that the student gives."""
    student = small_student()
    matrix = asyncio.run(score(student_predicts(student), pairs, layout="plain", classes=3))
    hits = sum(
        int((predict_pixels(student, read_pixels(image)) == read_pixels(label)[:, :, 0]).sum())
        for image, label in pairs
    )
    assert matrix.pixel_accuracy == hits / matrix.pixels


def test_the_answer_is_the_arg_max_at_full_size() -> None:
    """Logits are resized before the arg-max, and the gradient machine stays off."""
    student = small_student()
    pixels = np.random.default_rng(0).integers(0, 256, (21, 35, 3), np.uint8)
    with torch.no_grad():
        logits = student(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        full = torch.nn.functional.interpolate(logits, size=(21, 35), mode="bilinear")
    labels = predict_pixels(student, pixels)
    assert labels.dtype == np.uint8
    assert (labels == full.argmax(1)[0].numpy()).all()


def test_the_order_of_answers_does_not_matter(pairs: Pairs) -> None:
    """With several under way at once the same matrix comes out, and each image is told once."""

    async def predict(image: Path) -> UInt8:
        for _ in range(5 - int(image.stem)):  # later images answer first
            await asyncio.sleep(0)
        return np.zeros(read_pixels(image).shape[:2], np.uint8)

    told: list[int] = []
    alone = asyncio.run(score(predict, pairs, layout="plain", classes=3))
    many = asyncio.run(score(predict, pairs, layout="plain", classes=3, in_flight=4, on_image=told.append))
    assert (alone.counts == many.counts).all()
    assert told == [1, 2, 3, 4, 5]


def test_the_perfect_predictor_scores_one(pairs: Pairs) -> None:
    """Truth against itself."""
    truth = {image: read_pixels(label)[:, :, 0] for image, label in pairs}

    async def predict(image: Path) -> UInt8:
        return truth[image]

    matrix = asyncio.run(score(predict, pairs, layout="plain", classes=3))
    assert matrix.miou == matrix.pixel_accuracy == 1


def test_labels_of_another_size_end_it_with_the_file_named(pairs: Pairs) -> None:
    """The first failure comes out of the group as the DataError that it is."""
    save_label(pairs[2][1], np.zeros((4, 4)))
    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(score(student_predicts(small_student()), pairs, layout="plain", classes=3))
    (cause,) = caught.value.exceptions
    assert isinstance(cause, DataError)
    assert "2.png is 4x4 pixels and its image 21x11" in str(cause)


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words that score a student of the 19 classes on a tiny Cityscapes without trains and fences."""
    root = tmp_path_factory.mktemp("cityscapes")
    truth = formats.street(0)
    truth[np.isin(truth, [CLASSES.index("train"), CLASSES.index("fence")])] = VOID
    formats.write_cityscapes(root, {"a_000000_000019": truth}, "val")
    save_run(root / "run", small_student(len(CLASSES)), CLASSES)
    folders = ["--images", str(root / "leftImg8bit/val"), "--labels", str(root / "gtFine/val")]
    return ["evaluate", str(root / "run"), *folders, "--layout", "cityscapes"]


def test_cityscapes_scores_hold_the_means_of_papers(cityscapes: list[str]) -> None:
    """`--json` holds the 19-, 16- and 13-class means of one matrix, how many classes occur, and the rule."""
    result = CliRunner().invoke(app, [*cityscapes, "--json"])
    assert result.exit_code == 0, result.output
    scores = json.loads(result.stdout)
    iou = [entry["iou"] for entry in scores["classes"]]
    assert iou[CLASSES.index("train")] is None and iou[CLASSES.index("road")] is not None
    assert {title: (m["present"], m["of"]) for title, m in scores["means"].items()} == {
        "mIoU": (17, 19),
        "mIoU16": (15, 16),
        "mIoU13": (13, 13),
    }
    for title, chosen in CLASS_LISTS.items():
        rows = [iou[c] for c in chosen if iou[c] is not None]
        assert scores["means"][title]["value"] == pytest.approx(sum(rows) / len(rows))
    assert scores["means"]["mIoU"]["value"] == scores["miou"]
    assert scores["absent_rule"] == ABSENT_RULE


def test_cityscapes_table_names_the_lists_and_the_rule(cityscapes: list[str]) -> None:
    """Beside each mean stands how many of its classes occur, below the table what becomes of the others."""
    result = CliRunner().invoke(app, cityscapes, env={"COLUMNS": "100"})
    assert result.exit_code == 0, result.output
    assert "mIoU16, 15 of 16 classes" in result.stdout
    assert "mIoU13, 13 of 13 classes" in result.stdout
    assert "mean over 17 of 19 classes" in result.stdout
    assert ABSENT_RULE in result.stdout
