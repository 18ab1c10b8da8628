"""Cards: what is read, and what an operator is told about a mistake."""

from pathlib import Path
from typing import Any

import pytest

from corte_teacher.card import Card, read_card
from corte_teacher.errors import StartError
from teacher.tiny_models import as_toml, card_data

GROUP = {"name": "vehicle", "color": [1, 2, 3], "members": ["truck", "car"]}
TILES = {"height": 512, "width": 1024, "overlap": 64}


def written(folder: Path, **changes: Any) -> Path:
    """A card file with changes."""
    path = folder / "card.toml"
    path.write_text(as_toml(card_data(**changes)))
    return path


def test_a_group_stands_where_its_first_member_stood(tmp_path: Path) -> None:
    """Classes without a group stay themselves; ids follow the order of the card."""
    card = read_card(written(tmp_path, groups=[GROUP]))
    assert [(a.name, a.members) for a in card.outputs] == [
        ("road", (0,)),
        ("vehicle", (1, 2)),
        ("sky", (3,)),
        ("tree", (4,)),
    ]
    assert card.outputs[1].color == (1, 2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": {"hieght": 3}}, "unknown key input.hieght: choose from layout, dtype, height"),
        ({"colour": "red"}, "unknown key colour: choose from name, revision, model, input"),
        ({"classes": [{"name": "a", "color": [1, 2, 3], "id": 4}]}, r"unknown key classes\.0\.id"),
        ({"input": {"height": 3}}, "give height and width, or neither"),
        ({"input": {"layout": "hwc"}}, "input.layout: .*'nchw'"),
        ({"input": {"std": [0.0, 1.0, 1.0]}}, "std must be positive"),
        ({"input": {"dtype": "uint8", "mean": [0.5, 0.5, 0.5]}}, "leave them out for uint8"),
        ({"input": {"height": 8, "width": 8, "multiple_of": 8}}, "multiple_of is for a model without"),
        ({"output": {"kind": "labels", "layout": "nchw"}}, "layout nhw goes with kind labels"),
        ({"groups": [{**GROUP, "members": ["bus"]}]}, "names 'bus': choose from road, car, truck, sky, tree"),
        ({"groups": [GROUP, {**GROUP, "name": "w"}]}, "is in two groups"),
        ({"groups": [{**GROUP, "name": "sky"}]}, "must be distinct"),
        ({"groups": [{**GROUP, "members": ["road", "car", "truck", "sky", "tree"]}]}, "at least two classes"),
        ({"classes": [{"name": "a", "color": [1, 2, 300]}]}, r"classes\.0\.color\.2"),
        ({"revision": "no spaces please"}, "revision"),
        ({"tiles": {"height": 8, "width": 9, "overlap": 4}}, "overlap must be less than half"),
        ({"tiles": {"height": 8, "width": 9, "overlap": 0}}, r"tiles\.overlap: .*greater than or equal to 1"),
        ({"tiles": {"height": 8, "width": 9}}, r"tiles\.overlap: Field required"),
        ({"tiles": {"size": 8}}, "unknown key tiles.size: choose from height, width, overlap"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """Each error names the key and the choices or the remedy."""
    with pytest.raises(StartError, match=message):
        read_card(written(tmp_path, **changes))


def test_an_unreadable_card_is_named(tmp_path: Path) -> None:
    """Missing, not TOML, not text: one line that names the file."""
    with pytest.raises(StartError, match=r"no card at .*absent"):
        read_card(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(StartError, match="is not TOML"):
        read_card(tmp_path / "bad.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(StartError, match="is not TOML"):
        read_card(tmp_path / "bad.toml")


def test_only_what_changes_answers_makes_a_revision() -> None:
    """Name and colours do not; input, kind, class names and groups do."""
    base = Card.model_validate(card_data()).answering_fields()
    recoloured = [{**c, "color": [0, 0, 0]} for c in card_data()["classes"]]
    assert Card.model_validate(card_data(name="other", classes=recoloured)).answering_fields() == base
    altered: list[dict[str, Any]] = [
        {"input": {}},
        {"output": {"kind": "probabilities"}},
        {"groups": [GROUP]},
        {"tiles": TILES},
        {"tiles": {**TILES, "overlap": 2}},
    ]
    found = [base, *(Card.model_validate(card_data(**changes)).answering_fields() for changes in altered)]
    assert all(one != other for i, one in enumerate(found) for other in found[:i])


def test_tiles_are_read_and_old_revisions_stay(tmp_path: Path) -> None:
    """Tiles come from their section; a card without it gives the fields that it gave before there was one."""
    tiles = read_card(written(tmp_path, tiles=TILES)).tiles
    assert tiles is not None and (tiles.height, tiles.width, tiles.overlap) == (512, 1024, 64)
    assert set(read_card(written(tmp_path)).answering_fields()) == {"input", "output", "model", "classes"}
