"""Both keepers of quotas against the contract, what is particular to each, and the headers."""

import contextlib
import re
import resource
import shutil
import sqlite3
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from corte_protocol import InvalidValue
from corte_teacher.errors import Overloaded, StartError
from corte_teacher.quotas import Quota, Spending, Standing, headers, open_quotas
from corte_teacher.quotas.sqlite import SqliteQuotas
from teacher.quota_contract import DAY, NOON, Place, QuotasContract, content, spend

BOTH = Quota(1000, 1000)


class TestSqlite(QuotasContract):
    """A file."""

    @pytest.fixture
    def new_place(self, tmp_path: Path) -> Callable[[], Place]:
        """A new file each time."""
        return lambda: Place(str(tmp_path / f"{uuid.uuid4()}.sqlite"))


class TestRedis(QuotasContract):
    """A server."""

    @pytest.fixture
    def new_place(self, redis_url: str) -> Callable[[], Place]:
        """A new namespace each time."""
        return lambda: Place(redis_url, str(uuid.uuid4()))


@contextlib.contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server on the socket `redis` of `folder`, where it keeps its files; killed at the end."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    socket = folder / "redis"
    args = ["--port", "0", "--unixsocket", str(socket), "--dir", str(folder), "--save", "", *options]
    server = subprocess.Popen([program, *args], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 30
        while True:
            with redis.Redis(unix_socket_path=str(socket)) as client, contextlib.suppress(redis.RedisError):
                client.ping()
                break
            assert server.poll() is None and time.monotonic() < until, "redis-server does not start"
            time.sleep(0.02)
        yield server
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server."""
    folder = tmp_path_factory.mktemp("redis")
    with redis_server(folder):
        yield f"unix://{folder}/redis"


def rows(path: Path, table: str) -> int:
    """How many a file holds."""
    db = sqlite3.connect(path)
    (count,) = db.execute(f"SELECT count(*) FROM {table}").fetchone()
    db.close()
    return int(count)


def test_without_limits_no_storage_is_touched(tmp_path: Path) -> None:
    """An unlimited request is answered even where the accounts are closed."""
    quotas = open_quotas(str(tmp_path / "q.sqlite"))
    quotas.close()
    assert spend(quotas, "o", Quota(), 5, b"x", NOON) == () == quotas.standing("o", Quota(), NOON)
    with pytest.raises(Overloaded):
        spend(quotas, "o", BOTH, 5, b"x", NOON)
    with pytest.raises(Overloaded):
        quotas.standing("o", BOTH, NOON)


def test_a_file_stays_small_for_years(tmp_path: Path) -> None:
    """However long it serves, a file holds the windows and contents of the last minutes, and two days."""
    path = tmp_path / "q.sqlite"
    quotas = open_quotas(str(path))
    for n in range(1500):
        spend(quotas, f"o{n % 3}", Quota(1000, 10**9), 1, content(n), NOON + n * 600)
    assert rows(path, "windows") <= 3 * 2 + 3
    assert rows(path, "repeats") <= 3
    quotas.close()


def test_what_has_ended_goes_in_small_steps(tmp_path: Path) -> None:
    """After a flood each later request removes a few old rows more than it adds, until none is left."""
    path = tmp_path / "q.sqlite"
    quotas = open_quotas(str(path))
    for n in range(400):
        spend(quotas, f"o{n}", Quota(1000, 10**9), 1, content(n), NOON)
    assert (rows(path, "windows"), rows(path, "repeats")) == (800, 400)
    later = NOON + 2 * DAY
    for n in range(140):
        before = rows(path, "windows"), rows(path, "repeats")
        spend(quotas, f"p{n}", Quota(1000, 10**9), 1, content(-n), later)
        assert before[0] - rows(path, "windows") <= 16
        assert before[1] - rows(path, "repeats") <= 4
    assert (rows(path, "windows"), rows(path, "repeats")) == (280, 140)
    quotas.close()


def test_a_file_held_by_another_process_means_overloaded(tmp_path: Path) -> None:
    """After the time that it may take, a request is refused and spends nothing; later ones succeed."""
    path = tmp_path / "q.sqlite"
    quotas = SqliteQuotas(path, busy_s=0.05)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(Overloaded):
        spend(quotas, "o", BOTH, 5, b"x", NOON)
    assert [s.remaining for s in quotas.standing("o", BOTH, NOON)] == [1000, 1000]
    holder.execute("ROLLBACK")
    holder.close()
    assert [s.remaining for s in spend(quotas, "o", BOTH, 5, b"x", NOON)] == [995, 995]
    quotas.close()


def test_a_full_disk_means_overloaded(tmp_path: Path) -> None:
    """Where the file cannot grow a request is refused, and what was spent before still counts."""
    quotas, quota, spent = open_quotas(str(tmp_path / "q.sqlite")), Quota(None, 10**9), 0
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(Overloaded):
            for n in range(10_000):
                spend(quotas, "o", quota, 7, content(n), NOON)
                spent += 7
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert spent > 0
    assert [s.remaining for s in quotas.standing("o", quota, NOON)] == [10**9 - spent]
    quotas.close()


def test_a_file_is_for_its_owner_only(tmp_path: Path) -> None:
    """The names of key holders can be read by nobody else, in the side files as well."""
    quotas = open_quotas(str(tmp_path / "q.sqlite"))
    spend(quotas, "o", BOTH, 5, b"x", NOON)
    assert {f.name: f.stat().st_mode & 0o777 for f in tmp_path.iterdir()} == {
        "q.sqlite": 0o600,
        "q.sqlite-wal": 0o600,
        "q.sqlite-shm": 0o600,
    }
    quotas.close()


def _make(path: Path) -> None:
    quotas = open_quotas(str(path))
    for n in range(300):
        spend(quotas, f"o{n}", BOTH, 5, content(n), NOON)
    quotas.close()


def _garbage(path: Path) -> None:
    path.write_bytes(b"not a database" * 100)


def _damage(path: Path) -> None:
    _make(path)
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xff" * 4096 + data[8192:])


def _cut(path: Path) -> None:
    _make(path)
    path.write_bytes(path.read_bytes()[:-6000])


def _another(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE theirs (x)")
    db.close()


def _newer(path: Path) -> None:
    _make(path)
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()


@pytest.mark.parametrize(
    ("spoil", "remedy"),
    [
        (_garbage, "move it away"),
        (_damage, "move it away"),
        (_cut, "move it away"),
        (_another, "name another file"),
        (_newer, "update it"),
        (Path.mkdir, "directory"),
    ],
)
def test_a_file_that_cannot_be_used_is_left_as_it_is(
    tmp_path: Path, spoil: Callable[[Path], None], remedy: str
) -> None:
    """The service does not start on it, and says what to do."""
    path = tmp_path / "q.sqlite"
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(StartError, match=remedy) as failure:
        open_quotas(str(path))
    assert str(path) in str(failure.value) and "\n" not in str(failure.value)
    assert before is None or path.read_bytes() == before


@pytest.mark.parametrize(
    "where", ["/dev/null/q.sqlite", "/no/such/folder/q.sqlite", "/proc/q.sqlite", "postgres://h/db"]
)
def test_a_place_that_there_is_not_is_a_start_error(where: str) -> None:
    """Nothing is served without a place for the accounts."""
    with pytest.raises(StartError, match="--quotas"):
        open_quotas(where)


def test_services_that_share_a_redis_do_not_share_accounts(redis_url: str) -> None:
    """Another namespace is another account of the same name."""
    one, two = open_quotas(redis_url, "one"), open_quotas(redis_url, "two")
    spend(one, "o", BOTH, 400, b"x", NOON)
    assert [s.remaining for s in one.standing("o", BOTH, NOON)] == [600, 600]
    assert [s.remaining for s in two.standing("o", BOTH, NOON)] == [1000, 1000]
    one.close()
    two.close()
    with pytest.raises(StartError, match="namespace"):
        open_quotas(redis_url, "one:two")


def test_every_key_in_redis_goes_by_itself(redis_url: str) -> None:
    """Each key expires a minute after it means nothing any more."""
    quotas = open_quotas(redis_url, "expiry")
    for n in range(3):
        spend(quotas, "o", BOTH, 5, content(n % 2), NOON + 20)
    quotas.close()
    with redis.Redis.from_url(redis_url) as client:
        found = {bytes(key).decode(): client.ttl(key) for key in client.scan_iter("corte:{expiry:*")}
    assert len(found) == 4
    for key, seconds in found.items():
        kind = key.split("}:")[1].split(":")[0]
        right = {"60": 40 + 60, "86400": DAY // 2 - 20 + 60, "repeats": 660}[kind]
        assert right - 60 <= seconds <= right


def test_a_killed_redis_means_overloaded_and_loses_nothing(tmp_path: Path) -> None:
    """Without the server requests are refused; with its log it comes back knowing what was spent."""
    where = f"unix://{tmp_path}/redis"
    with redis_server(tmp_path, "--appendonly", "yes") as server:
        quotas = open_quotas(where)
        for n in range(50):
            spend(quotas, "o", BOTH, 5, content(n), NOON)
        server.kill()
        server.wait()
        with pytest.raises(Overloaded):
            spend(quotas, "o", BOTH, 5, b"x", NOON)
        with pytest.raises(Overloaded):
            quotas.standing("o", BOTH, NOON)
        assert spend(quotas, "o", Quota(), 5, b"x", NOON) == ()
        with pytest.raises(StartError, match="does not answer"):
            open_quotas(where)
    with redis_server(tmp_path, "--appendonly", "yes"):
        assert [s.remaining for s in spend(quotas, "o", BOTH, 1, b"x", NOON)] == [749, 749]
        quotas.close()


def test_a_group_asks_redis_once_and_is_refused_where_it_is_full(tmp_path: Path) -> None:
    """Nothing but the script is asked; a server without memory refuses each, and nothing is spent."""
    group = [Spending("o", BOTH, 5, content(n)) for n in range(8)]
    with redis_server(tmp_path) as server, redis.Redis(unix_socket_path=f"{tmp_path}/redis") as client:
        quotas = open_quotas(f"unix://{tmp_path}/redis")
        client.config_resetstat()
        assert len(quotas.spend_all(group, NOON)) == 8
        commands = {name for name in client.info("commandstats") if name != "cmdstat_config|resetstat"}
        assert commands <= {"cmdstat_eval", "cmdstat_get", "cmdstat_incrby", "cmdstat_expire"} | {
            "cmdstat_hmget",
            "cmdstat_hset",
        }
        client.config_set("maxmemory", 1)
        again = [Spending("o", BOTH, 5, content(-n)) for n in range(1, 9)]
        assert all(isinstance(outcome, Overloaded) for outcome in quotas.spend_all(again, NOON))
        assert [s.remaining for s in quotas.standing("o", BOTH, NOON)] == [960, 960]
        server.kill()
        server.wait()
        with pytest.raises(Overloaded):
            quotas.spend_all(group, NOON)
        quotas.close()


def test_a_redis_that_may_forget_is_refused_at_the_start(tmp_path: Path) -> None:
    """A server that evicts keys when it is full would let a quota be spent twice."""
    with (
        redis_server(tmp_path, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"),
        pytest.raises(StartError, match="noeviction"),
    ):
        open_quotas(f"unix://{tmp_path}/redis")


@pytest.mark.parametrize("url", ["redis://:hunter2@localhost:1/0", "redis://:hunter2@localhost:port/0"])
def test_a_password_is_in_no_message(url: str) -> None:
    """What does not answer, and what is no address, is told without the address."""
    with pytest.raises(StartError) as failure:
        open_quotas(url)
    assert "hunter2" not in str(failure.value)


@pytest.mark.parametrize("pixels", [0, -1, 10**15])
def test_a_quota_is_a_number_that_headers_can_hold(pixels: int) -> None:
    """RFC 9651 integers have up to 15 digits."""
    with pytest.raises(InvalidValue):
        Quota(per_minute=pixels)
    with pytest.raises(InvalidValue):
        Quota(per_day=pixels)


@given(
    st.lists(
        st.builds(
            Standing,
            st.sampled_from(["minute", "day"]),
            st.integers(1, 10**15 - 1),
            st.integers(0, 10**15 - 1),
            st.integers(1, DAY),
        ),
        min_size=1,
        max_size=2,
        unique_by=lambda standing: standing.window,
    )
)
def test_headers_say_what_is_left(standings: list[Standing]) -> None:
    """Both fields name the same windows in the same order, and parse back to the same numbers."""
    found = headers(standings)
    limits = [re.fullmatch(r'"(\w+)";r=(\d+);t=(\d+)', item) for item in found["RateLimit"].split(", ")]
    policies = [
        re.fullmatch(r'"(\w+)";q=(\d+);w=(\d+);qu="pixels"', item)
        for item in found["RateLimit-Policy"].split(", ")
    ]
    for standing, limit, policy in zip(standings, limits, policies, strict=True):
        assert limit is not None and policy is not None
        assert limit.groups() == (standing.window, str(standing.remaining), str(standing.reset_s))
        assert policy.groups() == (
            standing.window,
            str(standing.quota),
            {"minute": "60", "day": "86400"}[standing.window],
        )


def test_without_a_window_there_are_no_headers() -> None:
    """An empty list is not a legal field."""
    assert headers(()) == {}
