"""What was or may have been paid: counted before it is spent, never forgotten, and never above the cap."""

import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corte_student.errors import BudgetExhausted, LedgerError, SettingsError
from corte_student.ledger import Ledger, Spending, store
from corte_student.money import Cap
from ledgers import MARGIN, NO_CAP, body, pay, question


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(path)
    yield opened
    opened.close()


def states(path: Path) -> list[str]:
    db = sqlite3.connect(path)
    found = [state for (state,) in db.execute("SELECT state FROM spending ORDER BY id")]
    db.close()
    return found


def test_a_request_counts_before_and_after_its_answer(path: Path, ledger: Ledger) -> None:
    """Reserved it is spent and unanswered; committing the answer makes it answered, and ends the claim."""
    q = question(0)
    assert ledger.claim(q, MARGIN)
    reservation = ledger.reserve("faulty", 1500, "usd", NO_CAP)
    assert ledger.spending("faulty") == Spending(1, 0, {"usd": 1500})
    assert ledger.spending("faulty").unanswered == 1
    ledger.commit(q, body(0), MARGIN, reservation)
    assert ledger.spending("faulty") == Spending(1, 1, {"usd": 1500})
    assert ledger.spending("other") == Spending(0, 0, {})
    assert (ledger.counts().claims, states(path)) == (0, ["answered"])


def test_only_what_was_not_billed_is_forgotten(path: Path, ledger: Ledger) -> None:
    """A retry is a request of its own; one that was answered stays, whatever is said later."""
    _lost, refused, useless, good = (ledger.reserve("faulty", 10, "usd", NO_CAP) for _ in range(4))
    ledger.settle(refused, billed=False)
    ledger.settle(useless, billed=True)
    ledger.commit(question(0), body(0), MARGIN, good)
    ledger.settle(good, billed=False)
    ledger.settle(refused, billed=True)
    assert states(path) == ["reserved", "answered", "answered"]
    assert ledger.spending() == Spending(3, 2, {"usd": 30})


def test_an_answer_without_a_reservation_is_stored_as_ever(ledger: Ledger) -> None:
    """A teacher that costs nothing needs no row; one that is unknown is no reason to lose an answer."""
    ledger.commit(question(0), body(0), MARGIN)
    ledger.commit(question(1), body(1), MARGIN, 12345)
    assert ledger.find(question(1), MARGIN) == body(1)
    assert ledger.spending().requests == 0


def test_the_cap_on_money_is_reached_and_not_passed(path: Path, ledger: Ledger) -> None:
    """The last request that fits is allowed; the message says what was spent, the cap, and what to do."""
    cap = Cap(1_000_000, "usd")
    for _ in range(2):
        ledger.reserve("faulty", 400_000, "usd", cap)
    with pytest.raises(BudgetExhausted) as refused:
        ledger.reserve("faulty", 200_001, "usd", cap)
    assert str(refused.value) == (
        "the next request to the teacher faulty costs 0.200001 usd and would pass the budget of 1.00 usd; "
        "0.80 usd spent in 2 requests (2 unanswered): raise --budget; what is paid is kept, and train goes "
        "on with --resume"
    )
    ledger.reserve("faulty", 200_000, "usd", cap)
    assert ledger.spending("faulty").micros == {"usd": 1_000_000}
    ledger.reserve("other", 1_000_000, "usd", cap)
    assert states(path) == ["reserved"] * 4


def test_the_cap_on_requests_counts_those_without_a_price(ledger: Ledger) -> None:
    """Free and priced ones alike; a request that was not billed makes room again."""
    cap = Cap(max_requests=2)
    ledger.reserve("faulty", 0, "", cap)
    second = ledger.reserve("faulty", 7, "eur", cap)
    with pytest.raises(BudgetExhausted, match=r"limit of 2 requests; 0\.000007 eur spent .* --max-requests"):
        ledger.reserve("faulty", 0, "", cap)
    ledger.settle(second, billed=False)
    ledger.reserve("faulty", 0, "", cap)
    with pytest.raises(BudgetExhausted, match="limit of 0 requests; no money spent"):
        ledger.reserve("other", 0, "", Cap(max_requests=0))


def test_a_restart_does_not_reset_the_cap(path: Path) -> None:
    """It is over everything this ledger ever spent on that teacher, answered or not."""
    cap = Cap(3000, "usd")
    for n in range(2):
        ledger = Ledger.open(path)
        q = question(n)
        assert ledger.claim(q, MARGIN)
        reservation = ledger.reserve("faulty", 1500, "usd", cap)
        if n:
            ledger.commit(q, body(n), MARGIN, reservation)
        ledger.close()
    ledger = Ledger.open(path)
    with pytest.raises(BudgetExhausted, match=r"0\.003 usd spent in 2 requests \(1 unanswered\)"):
        ledger.reserve("faulty", 1, "usd", cap)
    ledger.close()


def test_the_first_requests_of_a_teacher_are_free(ledger: Ledger) -> None:
    """However often the ledger is asked, N requests cost nothing; they count as requests."""
    cap = Cap(250, "usd")
    for _ in range(5):
        ledger.reserve("faulty", 100, "usd", cap, free=3)
    assert ledger.spending("faulty") == Spending(5, 0, {"usd": 200})
    with pytest.raises(BudgetExhausted):
        ledger.reserve("faulty", 100, "usd", cap, free=3)


def test_currencies_are_never_mixed(ledger: Ledger) -> None:
    """A budget in one currency cannot be kept where the price or the past is in another."""
    cap = Cap(1000, "usd")
    with pytest.raises(SettingsError, match=r"has no price: state --price-per-1k in usd"):
        ledger.reserve("faulty", 0, "", cap)
    with pytest.raises(SettingsError, match="its price is in eur"):
        ledger.reserve("faulty", 1, "eur", cap)
    for cost, currency in ((1, ""), (-1, "usd")):
        with pytest.raises(SettingsError, match="cannot cost"):
            ledger.reserve("faulty", cost, currency, NO_CAP)
    assert ledger.spending().requests == 0
    ledger.reserve("faulty", 5, "eur", NO_CAP)
    with pytest.raises(SettingsError, match=r"spent 0\.000005 eur on the teacher faulty"):
        ledger.reserve("faulty", 1, "usd", cap)


HAMMER = """
import sys
from pathlib import Path
from corte_student.errors import BudgetExhausted
from corte_student.ledger import Ledger
from corte_student.money import Cap
ledger, seed, cap, limit = Ledger.open(Path(sys.argv[1])), *map(int, sys.argv[2:])
sys.stdin.read(1)
spent, costs = 0, [7 + seed, 31 + seed, 53 + seed]
for n in range(10_000):
    cost = costs[n % 3]
    try:
        reservation = ledger.reserve("faulty", cost, "usd", Cap(cap, "usd", limit))
    except BudgetExhausted:
        break
    if n % 4 == 0:
        ledger.settle(reservation, billed=False)
        continue
    if n % 4 == 1:
        ledger.settle(reservation, billed=True)
    spent += cost
ledger.close()
print(spent)
"""


@pytest.mark.parametrize(("cap", "limit"), [(10_000, 10**6), (10**9, 150)])
def test_eight_processes_never_pass_the_cap_by_one_micro(path: Path, cap: int, limit: int) -> None:
    """All hammer one ledger until each is refused: what they spent is what is written, within the cap."""
    Ledger.open(path).close()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HAMMER, str(path), str(seed), str(cap), str(limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(8)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    spent = [int(process.communicate()[0]) for process in processes]
    assert [process.returncode for process in processes] == [0] * 8
    ledger = Ledger.open(path)
    total = ledger.spending("faulty")
    ledger.close()
    assert total.micros["usd"] == sum(spent) <= cap
    assert total.requests <= limit
    # whoever was refused last was refused for want of 60 micros at most, or of one request
    assert total.micros["usd"] > cap - 60 or total.requests == limit


def test_a_kill_between_reserving_and_the_answer_leaves_it_spent(path: Path, ledger: Ledger) -> None:
    """After SIGKILL the request counts, for it may have been billed; the question is free to be asked."""
    script = (
        "import os, signal, sys; from pathlib import Path; from corte_protocol import Disclosure;"
        "from corte_student.ledger import Ledger, Question; from corte_student.money import Cap;"
        "l = Ledger.open(Path(sys.argv[1])); q = Question('file-0', 'pixels-0', 'faulty', 'r1');"
        "assert l.claim(q, Disclosure(2, 8)); l.reserve('faulty', 1500, 'usd', Cap());"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -9
    assert ledger.spending("faulty") == Spending(1, 0, {"usd": 1500})
    with pytest.raises(BudgetExhausted):
        ledger.reserve("faulty", 1500, "usd", Cap(2999, "usd"))
    pay(ledger, question(0), body(0))
    assert ledger.spending("faulty") == Spending(2, 1, {"usd": 3000})


def test_a_spilled_answer_keeps_its_reservation(path: Path) -> None:
    """On a full disk the payment stays spent, and is answered once the answer is taken in."""
    ledger = Ledger.open(path, max_bytes=24 * 4096)
    with pytest.raises(LedgerError, match="the disk is full"):
        for n in range(20):
            q = question(n)
            assert ledger.claim(q, MARGIN)
            reservation = ledger.reserve("faulty", 1500, "usd", NO_CAP)
            ledger.commit(q, os.urandom(16_000), MARGIN, reservation)
    spent = ledger.spending()
    assert (spent.unanswered, spent.answered) == (1, n)
    ledger.close()
    again = Ledger.open(path)
    assert again.spending() == Spending(n + 1, n + 1, {"usd": 1500 * (n + 1)})
    assert again.find(question(n), MARGIN) is not None
    again.close()


def test_a_spill_of_the_old_version_is_taken_in(path: Path, ledger: Ledger) -> None:
    """It names no payment; what cannot be read at all is removed."""
    ledger.commit(question(0), body(0), MARGIN)
    ledger.close()
    db = sqlite3.connect(path)
    (checksum,) = db.execute("SELECT checksum FROM answers").fetchone()
    with db:
        db.execute("DELETE FROM answers")
    db.close()
    folder = path.with_name("ledger.sqlite-spill")
    folder.mkdir()
    head = f'["file-0", "pixels-0", "faulty", "r1", "identity", 2, 8, "{checksum.hex()}"]\n'
    (folder / "a.answer").write_bytes(head.encode() + body(0))
    for name, data in (("b", b"7\n"), ("c", b"[1, 2]\n"), ("d", b"no json")):
        (folder / f"{name}.answer").write_bytes(data)
    again = Ledger.open(path)
    assert again.find(question(0), MARGIN) == body(0)
    assert again.counts().answers == 1
    assert not list(folder.iterdir())
    again.close()


def test_nothing_is_reserved_without_room(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be stored is not asked for, and so not paid for."""
    monkeypatch.setattr(store, "MIN_FREE_BYTES", 1 << 62)
    with pytest.raises(LedgerError, match="the disk is full"):
        ledger.reserve("faulty", 1, "usd", NO_CAP)
    assert ledger.spending().requests == 0


def test_under_a_file_size_limit_no_request_goes_uncounted(path: Path) -> None:
    """Whatever call meets the end of the disk, each request handed out is written down."""
    script = (
        "import sys; from pathlib import Path; from corte_protocol import Disclosure, CorteError;"
        "from corte_student.ledger import Ledger, Question; from corte_student.money import Cap\n"
        "l = Ledger.open(Path(sys.argv[1]))\n"
        "try:\n"
        "  for n in range(1000):\n"
        "    q = Question(f'f{n}', f'p{n}', 'faulty', 'r1')\n"
        "    r = l.reserve('faulty', 1, 'usd', Cap()); print(r, flush=True)\n"
        "    l.commit(q, bytes(4000), Disclosure(1, 0), r) if n % 2 else None\n"
        "except CorteError as exc: sys.exit(exc.exit_code)\n"
    )
    Ledger.open(path).close()
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
    )
    assert done.returncode == 4
    handed_out = len(done.stdout.split())
    ledger = Ledger.open(path)
    spent = ledger.spending()
    assert spent.requests == handed_out > 2
    assert spent.answered == ledger.counts().answers == handed_out // 2
    ledger.close()


STEP = st.tuples(
    st.sampled_from(["reserve", "unbilled", "billed", "commit"]),
    st.integers(0, 5),
    st.integers(0, 1000),
    st.sampled_from(["usd", "eur"]),
    st.sampled_from(["a", "b"]),
)


@settings(max_examples=40)
@given(steps=st.lists(STEP, max_size=25))
def test_the_totals_are_the_sums_of_the_rows(
    steps: list[tuple[str, int, int, str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever happens in whatever order, the running totals agree with a slow sum over all rows."""
    ledger = Ledger.open(tmp_path_factory.mktemp("ledger") / "l.sqlite")
    handed_out: list[int] = []
    for what, which, cost, currency, teacher in steps:
        if what == "reserve" or not handed_out:
            handed_out.append(ledger.reserve(teacher, cost, currency, NO_CAP))
        elif what == "commit":
            ledger.commit(question(which), body(which), MARGIN, handed_out[which % len(handed_out)])
        else:
            ledger.settle(handed_out[which % len(handed_out)], billed=what == "billed")
    for teacher in ("a", "b"):
        with ledger.reading() as db:
            rows = db.execute(
                "SELECT micros, currency, state FROM spending WHERE teacher = ?", (teacher,)
            ).fetchall()
        sums: dict[str, int] = {}
        for cost, currency, _ in rows:
            sums[currency] = sums.get(currency, 0) + cost
        answered = sum(state == "answered" for _, _, state in rows)
        assert ledger.spending(teacher) == Spending(len(rows), answered, sums)
    ledger.close()
