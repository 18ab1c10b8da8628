"""Key files: what is stored, who is let in and for how long, what is said when something is wrong."""

import json
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corte_teacher.errors import StartError
from corte_teacher.keys import (
    Grant,
    KeyRing,
    change_grant,
    create_key,
    read_keys,
    revoke_key,
    rotate_key,
    watch_stamp,
)

OLD_KEY = "ct_0a1b2c3d_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
OLD_FILE = """{
  "salt": "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
  "keys": [
    {
      "name": "alice",
      "prefix": "0a1b2c3d",
      "sha256": "416d5660c2d75de333943d997e8eaf57e86916de39825004c097009d6614373c",
      "created": "2026-03-01T09:30:00+00:00"
    }
  ]
}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test's keys are."""
    return tmp_path / "keys.json"


def now() -> datetime:
    """This moment, in UTC."""
    return datetime.now(UTC)


def name_of(path: Path, key: str, at: datetime | None = None) -> str | None:
    """Whose key it is by the file as it stands."""
    entry = read_keys(path).holder(key, at or now())
    return None if entry is None else entry.name


def test_only_the_hash_is_stored(path: Path) -> None:
    """The key is returned once; the file, readable by its owner only, does not hold its secret."""
    key = create_key(path, "alice")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    tag, prefix, secret = key.split("_", 2)
    text = path.read_text()
    assert tag == "ct" and len(secret) >= 43
    assert prefix in text and secret not in text
    assert [p.name for p in path.parent.iterdir()] == ["keys.json"]


def test_each_key_opens_for_its_owner(path: Path) -> None:
    """Keys differ, name their owner, and stop working once revoked; the salt stays."""
    alice, bob = create_key(path, "alice"), create_key(path, "bob")
    salt = read_keys(path).salt
    assert (name_of(path, alice), name_of(path, bob)) == ("alice", "bob")
    revoke_key(path, "alice")
    assert (name_of(path, alice), name_of(path, bob)) == (None, "bob")
    assert read_keys(path).salt == salt
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("wrong", ["", "ct", "ct_", "ct__", "é", "ct_00000000_x", "x" * 5000])
def test_nonsense_is_not_a_key(path: Path, wrong: str) -> None:
    """Whatever is sent, the answer is no."""
    key = create_key(path, "alice")
    assert name_of(path, wrong) is None
    assert name_of(path, key + "x") is None and name_of(path, key[:-1]) is None


def test_every_no_is_the_same_work(path: Path) -> None:
    """An unknown prefix and a wrong secret make the same calls: one hash and one compare."""
    key = create_key(path, "alice")
    ring = read_keys(path)
    prefix, secret = key.split("_", 2)[1:]
    other = "0" * 8 if prefix != "0" * 8 else "1" * 8
    unknown = calls(ring, f"ct_{other}_{secret}")
    wrong = calls(ring, f"ct_{prefix}_{secret[::-1]}")
    assert unknown == wrong
    assert sum("sha256" in name for name in wrong) == 1
    assert sum("compare_digest" in name for name in wrong) == 1


def calls(ring: KeyRing, key: str) -> list[str]:
    """The names of all functions, in Python and in C, that one refusal calls."""
    seen: list[str] = []

    def note(frame: FrameType, event: str, called: object) -> None:
        if event == "c_call":
            seen.append(getattr(called, "__name__", ""))
        elif event == "call":
            seen.append(frame.f_code.co_name)

    at = now()
    sys.setprofile(note)
    try:
        found = ring.holder(key, at)
    finally:
        sys.setprofile(None)
    assert found is None
    return seen[:-1]  # the last is the call that ends the profile


def test_an_old_file_is_read_and_kept(path: Path) -> None:
    """A file from before there were grants opens without limits, and its key can be limited and rotated."""
    path.write_text(OLD_FILE)
    entry = read_keys(path).holder(OLD_KEY, now())
    assert entry is not None
    assert (entry.name, entry.expires, entry.grant) == ("alice", None, Grant())
    create_key(path, "bob")
    assert json.loads(path.read_text())["keys"][0] == json.loads(OLD_FILE)["keys"][0]
    change_grant(path, "alice", Grant("labels"))
    new = rotate_key(path, "alice", timedelta(days=1))
    assert name_of(path, OLD_KEY) == name_of(path, new) == "alice"


def test_a_grant_is_kept_and_shared(path: Path) -> None:
    """All keys of a name have the grant that was last given to the name; others keep theirs."""
    grant = Grant("topk:3", 40_000_000, 2_000_000_000, 4)
    first, bob = create_key(path, "alice", grant), create_key(path, "bob", Grant("labels"))
    second = rotate_key(path, "alice", timedelta(days=7))
    ring = read_keys(path)
    assert [e.grant for key in (first, second) if (e := ring.holder(key, now()))] == [grant] * 2
    change_grant(path, "alice", lambda old: Grant(old.disclosure, concurrency=1))
    ring = read_keys(path)
    assert [e.grant for e in ring.entries if e.name == "alice"] == [Grant("topk:3", concurrency=1)] * 2
    assert (entry := ring.holder(bob, now())) is not None and entry.grant == Grant("labels")
    change_grant(path, "alice", Grant())
    assert {e.grant for e in read_keys(path).entries if e.name == "alice"} == {Grant()}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grant("most"), "unknown disclosure 'most'"),
        (lambda: Grant("topk:0"), "unknown disclosure"),
        (lambda: Grant(pixels_per_minute=0), "pixels per minute must be between 1"),
        (lambda: Grant(pixels_per_day=-5), "pixels per day must be between 1"),
        (lambda: Grant(concurrency=True), "concurrency must be between 1"),
        (lambda: Grant(concurrency=10**16), "concurrency must be between 1"),
    ],
)
def test_a_grant_means_something(make: Callable[[], Grant], message: str) -> None:
    """An unknown level and a count that is none are refused."""
    with pytest.raises(StartError, match=message):
        make()


def test_a_key_ends_at_its_time(path: Path) -> None:
    """A key opens until it expires; the entry is dropped at the next write, and the name is free again."""
    end = now() + timedelta(days=90)
    key = create_key(path, "alice", expires=end)
    assert name_of(path, key, end - timedelta(seconds=1)) == "alice"
    assert name_of(path, key, end) is None
    with pytest.raises(StartError, match="expire in the future"):
        create_key(path, "bob", expires=now() - timedelta(seconds=1))
    rotate_key(path, "alice", timedelta(0))
    assert name_of(path, key) is None and len(read_keys(path).entries) == 2
    revoke_key(path, "alice", read_keys(path).entries[1].prefix)
    assert read_keys(path).entries == ()
    create_key(path, "alice")


def test_rotation_extends_no_key(path: Path) -> None:
    """The older key ends after the overlap or when it would have; the newer lives as long as that was to."""
    end = now() + timedelta(days=30)
    create_key(path, "brief", expires=end)
    create_key(path, "long")
    before = {entry.name: entry.expires for entry in read_keys(path).entries}
    for name in before:
        rotate_key(path, name, timedelta(days=60))
    brief, long, brief_new, long_new = read_keys(path).entries
    assert brief.expires == before["brief"] and long.expires is not None
    assert long.until is not None and abs(long.until - now() - timedelta(days=60)) < timedelta(minutes=5)
    assert brief_new.until is not None and abs(brief_new.until - end) < timedelta(minutes=5)
    assert long_new.expires is None


def test_a_name_has_two_keys_at_most(path: Path) -> None:
    """A third is refused until one of the two is taken out by its prefix."""
    first = create_key(path, "alice")
    second = rotate_key(path, "alice", timedelta(days=7))
    with pytest.raises(StartError, match=f"--prefix {first.split('_')[1]}"):
        rotate_key(path, "alice", timedelta(days=7))
    with pytest.raises(StartError, match="no key with the prefix ffff; it has: "):
        revoke_key(path, "alice", "ffff")
    revoke_key(path, "alice", first.split("_")[1])
    third = rotate_key(path, "alice", timedelta(days=7))
    assert [name_of(path, key) for key in (first, second, third)] == [None, "alice", "alice"]


NAMES = st.sampled_from(["alice", "bob"])
DAYS = st.integers(1, 60)
OPERATIONS = st.one_of(
    st.tuples(st.just("create"), NAMES, st.none() | DAYS),
    st.tuples(st.just("rotate"), NAMES, st.integers(0, 60)),
    st.tuples(st.just("revoke"), NAMES, st.none() | st.integers(0, 1)),
)


@settings(max_examples=60)
@given(st.lists(OPERATIONS, max_size=12))
def test_exactly_the_live_keys_are_held(operations: list[tuple[str, str, int | None]]) -> None:
    """After any operations, of all keys ever made those that live by a plain model open, now and later."""
    made: list[str] = []
    # of a key: its name, the days it has left, the days it was to have
    ends: dict[str, tuple[str, float, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys.json"
        create_key(path, "somebody")
        for operation, name, number in operations:
            mine = [key for key, (owner, left, _) in ends.items() if owner == name and left > 0]
            if operation == "create":
                allowed = not mine
                life = float("inf") if number is None else float(number)
            elif operation == "rotate":
                allowed = len(mine) == 1
                life = ends[mine[0]][2] if mine else 0.0
            else:
                allowed = len(mine) > (number or 0)
            try:
                made += perform(path, operation, name, number, mine)
            except StartError:
                assert not allowed
                continue
            assert allowed
            if operation == "revoke":
                for key in mine if number is None else [mine[number]]:
                    del ends[key]
                continue
            if operation == "rotate":
                left = min(ends[mine[0]][1], float(number or 0))
                ends[mine[0]] = (name, left, left)
            ends[made[-1]] = (name, life, life)
        ring = read_keys(path)
        for days in range(61):
            at = now() + timedelta(days=days, minutes=5 if days else 0)
            assert {key for key in made if ring.holder(key, at)} == {
                key for key, (_, left, _) in ends.items() if left > days
            }


def perform(path: Path, operation: str, name: str, number: int | None, mine: list[str]) -> list[str]:
    """One operation, on the file; the keys that it made. `number` is of days, or tells which key."""
    if operation == "create":
        return [create_key(path, name, expires=None if number is None else now() + timedelta(days=number))]
    if operation == "rotate":
        return [rotate_key(path, name, timedelta(days=number or 0))]
    prefixes = [key.split("_")[1] for key in mine] + ["none", "none"]
    revoke_key(path, name, None if number is None else prefixes[number])
    return []


WRITER = """
import sys
from pathlib import Path
from corte_teacher.keys import create_key
print("ready", flush=True)
sys.stdin.readline()
for n in range(30):
    print(create_key(Path(sys.argv[1]), f"{sys.argv[2]}{n}"))
"""


def test_two_writers_lose_nothing(path: Path) -> None:
    """Of keys that two processes create at once, from the first one on, every one opens."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    keys = [key for writer in writers for key in writer.communicate(timeout=60)[0].split()]
    assert len(keys) == 60
    assert [name_of(path, key) for key in keys] == [f"{name}{n}" for name in "ab" for n in range(30)]


def test_a_change_is_noticed(path: Path) -> None:
    """Each write gives the file another stamp, reading gives none; a missing file is told with the remedy."""
    with pytest.raises(StartError, match="keys create NAME"):
        watch_stamp(path)
    create_key(path, "alice")
    stamps = {watch_stamp(path)}
    read_keys(path)
    stamps.add(watch_stamp(path))
    assert len(stamps) == 1
    change_grant(path, "alice", Grant(concurrency=1))
    stamps.add(watch_stamp(path))
    change_grant(path, "alice", Grant(concurrency=2))
    stamps.add(watch_stamp(path))
    assert len(stamps) == 3


def test_mistakes_are_named(path: Path) -> None:
    """A missing file, a taken, unknown or odd name, a wrong overlap: one line with the remedy."""
    for act in (read_keys, lambda p: revoke_key(p, "a"), lambda p: rotate_key(p, "a", timedelta(1))):
        with pytest.raises(StartError, match="keys create NAME"):
            act(path)
    create_key(path, "alice")
    with pytest.raises(
        StartError, match=r"already holds a key for alice: use .* rotate alice.* revoke alice"
    ):
        create_key(path, "alice")
    with pytest.raises(StartError, match="it holds: alice"):
        revoke_key(path, "bob")
    with pytest.raises(StartError, match="it holds: alice"):
        change_grant(path, "bob", Grant())
    with pytest.raises(StartError, match="name is 1 to 64"):
        create_key(path, "a b")
    for overlap in (timedelta(-1), timedelta.max):
        with pytest.raises(StartError, match="overlap is 0 to"):
            rotate_key(path, "alice", overlap)
    with pytest.raises(StartError, match="cannot be written"):
        create_key(path.parent / "no" / "folder" / "keys.json", "alice")


OLD = OLD_FILE.replace("416d5660c2d75de333943d997e8eaf57e86916de39825004c097009d6614373c", "0" * 64)
TIME = '"created": "2026-03-01T09:30:00+00:00"'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", ""),
        ("{}", ""),
        ("not json", ""),
        ('{"salt": "00", "keys": []}', "salt is too short"),
        ('{"salt": "zz", "keys": []}', ""),
        (OLD.replace('"salt"', '"more": 1, "salt"'), "field 'more' is unknown"),
        (OLD.replace('"name"', '"more": 1, "name"'), "field 'more' is unknown"),
        (OLD.replace(TIME, TIME + ', "until": null'), "field 'until' is unknown"),
        (OLD.replace(TIME, TIME + ', "grant": {"more": 1}'), "field 'more' is unknown"),
        (OLD.replace(TIME, TIME + ', "grant": {"concurrency": 0}'), "concurrency must be"),
        (OLD.replace(TIME, TIME + ', "grant": {"disclosure": 1}'), ""),
        (OLD.replace(TIME, TIME + ', "expires": "soon"'), "not a time in UTC"),
        (OLD.replace("09:30:00+00:00", "09:30:00"), "not a time in UTC"),
        (OLD.replace("09:30:00+00:00", "09:30:00+02:00"), "not a time in UTC"),
        (OLD.replace("0" * 64, "0" * 63), "malformed"),
        (OLD.replace('"alice"', '"al ice"'), "name is 1 to 64"),
        (OLD.replace('"alice"', "7"), ""),
    ],
)
def test_another_file_is_not_a_key_file(path: Path, content: str, reason: str) -> None:
    """What is not of the form that is written is refused whole, with the reason where there is one."""
    path.write_text(content)
    with pytest.raises(StartError, match=f"not a key file of corte-teacher.*{reason}"):
        read_keys(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ([{"prefix": "a"}, {"prefix": "a"}], "same prefix"),
        ([{"prefix": "a"}, {"prefix": "b"}, {"prefix": "c"}], "more than two keys"),
        ([{"prefix": "a"}, {"prefix": "b", "grant": {"concurrency": 1}}], "different grants"),
    ],
)
def test_keys_of_a_file_agree(path: Path, changes: list[dict[str, object]], reason: str) -> None:
    """Prefixes differ, a name has two keys at most, and they share one grant, also in an edited file."""
    data = json.loads(OLD)
    data["keys"] = [data["keys"][0] | change for change in changes]
    path.write_text(json.dumps(data))
    with pytest.raises(StartError, match=reason):
        read_keys(path)
