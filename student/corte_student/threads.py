"""Blocking work in a thread, that a cancellation waits for: nothing goes on behind our back."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def finished(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`work` in a thread; cancelled, it is awaited first."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    running.add_done_callback(seen)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


def seen(done: asyncio.Future[T]) -> None:
    """Look at a failure, so that none is reported as forgotten where everyone who waited has gone."""
    if not done.cancelled():
        done.exception()
