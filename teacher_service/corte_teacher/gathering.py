"""What an answer is written to: its head waits for its body, so that both are one packet."""

import asyncio
from typing import Any


class Gathering(asyncio.Transport):
    """A transport around uvicorn's. What is written after `hold` waits for the next call that acts on it.

    uvicorn writes head and body one after the other. Each write is a system call and a packet, and wakes the
    client.
    """

    def __init__(self, inner: asyncio.Transport) -> None:
        super().__init__()
        self._inner = inner
        self._holds = False
        self._head: bytes | None = None

    def hold(self) -> None:
        """The next bytes written are a head, and more will follow at once."""
        self._holds = True

    def write(self, data: Any) -> None:
        """Send, together with a head that waits."""
        if self._holds:
            self._holds, self._head = False, data
        elif self._head is None:
            self._inner.write(data)
        else:
            head, self._head = self._head, None
            self._inner.writelines((head, data))

    def release(self) -> None:
        """Send a head that waits, and hold none."""
        self._holds = False
        if self._head is not None:
            head, self._head = self._head, None
            self._inner.write(head)

    def close(self) -> None:
        """Close, once all is sent."""
        self.release()
        self._inner.close()

    def write_eof(self) -> None:
        """Half-close, once all is sent."""
        self.release()
        self._inner.write_eof()

    def abort(self) -> None:
        """Close at once."""
        self._inner.abort()

    def can_write_eof(self) -> bool:
        """Whether it can be half-closed."""
        return self._inner.can_write_eof()

    def is_closing(self) -> bool:
        """Whether it is being closed."""
        return self._inner.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Of the socket."""
        return self._inner.get_extra_info(name, default)

    def pause_reading(self) -> None:
        """Read no more."""
        self._inner.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._inner.resume_reading()
