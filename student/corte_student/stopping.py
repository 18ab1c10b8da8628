"""SIGINT and SIGTERM as a wish: what runs is told, finishes what it has begun, and ends."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_signals(stop: Callable[[int], None]) -> Iterator[None]:
    """Call `stop` with the signal's number in the running loop; as before at the end."""
    loop = asyncio.get_running_loop()
    taken = []
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, stop, number)
            taken.append(number)
        except (NotImplementedError, RuntimeError):  # not the main thread, or Windows
            continue
    try:
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)
