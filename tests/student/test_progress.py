"""Progress: whole lines into a file, bars on a terminal, speed from a clock that the test holds."""

import io

import pytest

from corte_student.report.progress import Progress, clock_text


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_one_plain_line_every_few_seconds() -> None:
    """Between two lines at least `plain_every` seconds pass, and facts are printed as given."""
    stream, clock = io.StringIO(), Clock()
    with Progress(20, "train", stream=stream, clock=clock) as progress:
        for done in range(1, 13):
            clock.now += 1
            progress.update(done, kept="71 %", sent=done, saved=0)
    assert stream.getvalue().splitlines() == [
        "train 5/20  1.0 images/s  ETA 0:15  kept 71 %  sent 5  saved 0",
        "train 10/20  1.0 images/s  ETA 0:10  kept 71 %  sent 10  saved 0",
        "train 12/20 in 0:12  1.0 images/s  kept 71 %  sent 12  saved 0",
    ]


def test_a_step_may_be_many_images_and_a_resume_begins_later() -> None:
    """Speed counts images of this process only; steps of an earlier one are no speed."""
    stream, clock = io.StringIO(), Clock()
    with Progress(100, "train", batch=8, initial=50, stream=stream, clock=clock) as progress:
        clock.now += 10
        progress.update(60)
    first, last = stream.getvalue().splitlines()
    assert first == "train 60/100  8.0 images/s  ETA 0:40"
    assert last == "train 60/100 in 0:10  8.0 images/s"


def test_speed_is_recent_speed() -> None:
    """After a slow start the time left is that of the last half minute."""
    stream, clock = io.StringIO(), Clock()
    with Progress(1000, "train", stream=stream, clock=clock) as progress:
        clock.now += 100
        progress.update(10)
        for done in range(20, 520, 10):
            clock.now += 1
            progress.update(done)
    assert "10.0 images/s" in stream.getvalue().splitlines()[-2]


def test_a_failure_is_said_where_it_stopped() -> None:
    """The final line never claims that all was done."""
    stream = io.StringIO()
    with pytest.raises(RuntimeError), Progress(3, "evaluate", stream=stream, clock=Clock()) as progress:
        progress.update(1)
        raise RuntimeError
    assert stream.getvalue() == "evaluate stopped at 1/3 in 0:00\n"


def test_nothing_done_is_no_division_by_zero() -> None:
    """An empty run ends with a line as well."""
    stream = io.StringIO()
    with Progress(0, "predict", stream=stream, clock=Clock()) as progress:
        progress.update(0)
    assert stream.getvalue() == "predict 0/0 in 0:00\n"


def test_a_note_is_a_line_of_its_own_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole and unwrapped on a terminal as in a file, whatever it holds, and without waiting for the next."""
    monkeypatch.setenv("TERM", "xterm")
    line = f"warning: [road] is lost{' really' * 30}"
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        with Progress(2, "train", stream=stream, clock=Clock()) as progress:
            progress.note(line)
            assert line in stream.getvalue()
    assert file.getvalue().splitlines()[0] == line


def test_a_terminal_gets_bars_and_a_file_never_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """FORCE_COLOR, which CI sets, does not turn a log file into a terminal."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        with Progress(2, "predict", stream=stream) as progress:
            progress.update(2, sent=2)
    assert "\x1b[" in terminal.getvalue()
    assert "\x1b" not in file.getvalue()
    assert "sent 2" in terminal.getvalue()


def test_time_is_read_like_a_clock() -> None:
    """Minutes and seconds, with hours where there are any."""
    assert [clock_text(s) for s in (0, 59.6, 61, 3661)] == ["0:00", "1:00", "1:01", "1:01:01"]
