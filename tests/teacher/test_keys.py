"""Key files: what is stored, who is let in, what is said when something is wrong."""

import stat
from pathlib import Path

import pytest

from corte_teacher.errors import StartError
from corte_teacher.keys import create_key, read_keys, revoke_key


def test_only_the_hash_is_stored(tmp_path: Path) -> None:
    """The key is returned once; the file, readable by its owner only, does not hold its secret."""
    path = tmp_path / "keys.json"
    key = create_key(path, "alice")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    tag, prefix, secret = key.split("_", 2)
    text = path.read_text()
    assert tag == "ct" and len(secret) >= 43
    assert prefix in text and secret not in text
    assert [p.name for p in tmp_path.iterdir()] == ["keys.json"]


def test_each_key_opens_for_its_owner(tmp_path: Path) -> None:
    """Keys differ, name their owner, and stop working once revoked; the salt stays."""
    path = tmp_path / "keys.json"
    alice, bob = create_key(path, "alice"), create_key(path, "bob")
    ring = read_keys(path)
    assert (ring.owner(alice), ring.owner(bob)) == ("alice", "bob")
    revoke_key(path, "alice")
    after = read_keys(path)
    assert (after.owner(alice), after.owner(bob)) == (None, "bob")
    assert after.salt == ring.salt
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("wrong", ["", "ct", "ct_", "ct__", "é", "ct_00000000_x", "x" * 5000])
def test_nonsense_is_not_a_key(tmp_path: Path, wrong: str) -> None:
    """Whatever is sent, the answer is no."""
    path = tmp_path / "keys.json"
    key = create_key(path, "alice")
    ring = read_keys(path)
    assert ring.owner(wrong) is None
    assert ring.owner(key + "x") is None and ring.owner(key[:-1]) is None


def test_mistakes_are_named(tmp_path: Path) -> None:
    """A missing file, a taken or odd name, a file of something else: one line with the remedy."""
    path = tmp_path / "keys.json"
    with pytest.raises(StartError, match="keys create NAME"):
        read_keys(path)
    create_key(path, "alice")
    with pytest.raises(StartError, match="already holds a key for alice"):
        create_key(path, "alice")
    with pytest.raises(StartError, match="it holds: alice"):
        revoke_key(path, "bob")
    with pytest.raises(StartError, match="name is 1 to 64"):
        create_key(path, "a b")
    for content in ("[]", "{}", "not json", '{"salt": "00", "keys": []}', '{"salt": "zz", "keys": []}'):
        path.write_text(content)
        with pytest.raises(StartError, match="not a key file"):
            read_keys(path)
    with pytest.raises(StartError, match="cannot be written"):
        create_key(tmp_path / "no" / "folder" / "keys.json", "alice")
