"""Whose turn it is, and how much may be inside: fair queueing in pixels, and bounds that leave room."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corte_teacher.errors import BusyKey, Overloaded
from corte_teacher.places import Places
from corte_teacher.shares import Shares

SIZES = st.integers(1, 4_000_000)


@given(st.lists(st.tuples(SIZES, SIZES, SIZES), min_size=1, max_size=60))
def test_backlogged_owners_are_served_equally(images: list[tuple[int, int, int]]) -> None:
    """Of owners that always wait, no two are ever apart by more than one image of each."""
    shares = Shares()
    owners = ("a", "b", "c")
    served = dict.fromkeys(owners, 0)
    queues = {owner: [sizes[n] for sizes in images] for n, owner in enumerate(owners)}
    largest = max(max(sizes) for sizes in images)
    while all(queues.values()):
        owner = shares.first(queues)
        assert owner is not None
        pixels = queues[owner].pop()
        shares.charge(owner, pixels)
        served[owner] += pixels
        assert max(served.values()) - min(served.values()) <= 2 * largest


@given(st.integers(1, 500), SIZES)
def test_who_was_idle_comes_next_but_earns_no_credit(floods: int, pixels: int) -> None:
    """A newcomer is served before a flood's next image, and then takes turns with it."""
    shares = Shares()
    for _ in range(floods):
        shares.charge("flood", pixels)
    turns = []
    for _ in range(6):
        owner = shares.first(["flood", "new"])
        assert owner is not None
        shares.charge(owner, pixels)
        turns.append(owner)
    assert turns == ["new", "flood"] * 3 or turns == ["new", "new", "flood", "new", "flood", "new"]


@given(st.lists(st.tuples(st.sampled_from("abc"), SIZES), max_size=30))
def test_after_a_rest_all_start_alike(served: list[tuple[str, int]]) -> None:
    """What was served before everybody was content decides nothing afterwards."""
    shares = Shares()
    for owner, pixels in served:
        shares.charge(owner, pixels)
    shares.rest()
    assert shares.first(["c", "b", "a"]) == "c"


def test_a_flooding_key_leaves_room() -> None:
    """One key fills half of the places; a second one still finds some."""
    places = Places(64, 1 << 20)
    held = []
    with pytest.raises(Overloaded):
        for _ in range(64):
            place = places.take("flood", None, 3.0)
            place.__enter__()
            held.append(place)
    assert len(held) == 32
    with places.take("other", None, 3.0):
        assert places.taken == 33
    for place in held:
        place.__exit__(None, None, None)
    assert places.taken == 0


def test_without_keys_all_places_are_everybodys() -> None:
    """The rule that leaves room for other keys does not bind a service that has none."""
    places = Places(4, 1 << 20)
    held = [places.take(None, None, 1.0) for _ in range(4)]
    for place in held:
        place.__enter__()
    with pytest.raises(Overloaded), places.take(None, None, 7.0):
        pass


def test_a_keys_own_limit_is_the_keys_fault() -> None:
    """Beyond its own concurrency a key is refused as busy, whatever room there is."""
    places = Places(64, 1 << 20)
    with places.take("a", 1, 5.0):
        with pytest.raises(BusyKey), places.take("a", 1, 5.0):
            pass
        with places.take("b", 1, 5.0):
            pass


def test_bytes_are_bounded_and_given_back() -> None:
    """Bodies together never exceed the bound, and a body's end frees exactly its bytes."""
    places = Places(8, 100)
    with places.take("a", None, 0.0) as one, places.take("b", None, 0.0) as two:
        one.hold(60)
        with pytest.raises(Overloaded):
            two.hold(41)
        two.hold(40)
        one.drop()
        two.hold(60)
    with places.take("a", None, 0.0) as again:
        again.hold(100)
