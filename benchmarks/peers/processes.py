"""A process and all its descendants: processor time, memory, stopping and going on. Linux only.

Processor time is the kernel's own count in nanoseconds (the process's clock, clock_getcpuclockid(3)), plus
that of children that ended and were waited for (/proc/PID/stat, in ticks of 10 ms).
"""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def descendants(root: int) -> list[int]:
    """The children of `root`, theirs, and so on, parents first; zombies among them."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and (fields := _stat(int(entry))):
            children.setdefault(int(fields[1]), []).append(int(entry))
    found = list(children.get(root, []))
    for pid in found:  # grows while it is walked
        found.extend(children.get(pid, []))
    return found


def cpu_ns(root: int) -> int:
    """Nanoseconds of processor time, user and system, that the descendants of `root` ever took."""
    total = 0
    for pid in descendants(root):
        if not (fields := _stat(pid)):  # it ended, and is counted in its parent at the next call
            continue
        own, reaped = (int(fields[i]) + int(fields[i + 1]) for i in (11, 13))
        total += reaped * _TICK_NS
        try:
            total += time.clock_gettime_ns((~pid << 3) | 2)  # MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED)
        except OSError:  # a zombie has no clock any more
            total += own * _TICK_NS
    return total


def busy_ns() -> int:
    """Nanoseconds of processor time that the whole machine spent, apart from idling and from steal."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq = map(int, fields[:7])
    return (user + nice + system + irq + softirq) * _TICK_NS


def memory(root: int) -> tuple[int, int]:
    """Bytes of memory of the descendants, shared pages by share (PSS), and how many processes they are."""
    total, count = 0, 0
    for pid in descendants(root):
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            count += 1
    return total, count


def stop(root: int) -> None:
    """Halt all descendants (SIGSTOP): they cost nothing until `go_on`."""
    halted: set[int] = set()
    while fresh := [
        pid for pid in descendants(root) if pid not in halted
    ]:  # one may just be starting another
        _send(fresh, signal.SIGSTOP)
        halted.update(fresh)


def go_on(root: int) -> None:
    """Let all descendants go on (SIGCONT), children first, so that none is missed by its parent."""
    _send(descendants(root)[::-1], signal.SIGCONT)


def _send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on (proc(5): the third is index 0); empty: it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
