"""What our connections offer the application beyond ASGI, by their names in `scope["extensions"]`."""

from typing import Final

ON_GONE: Final = "corte.on_gone"
"""Call it with a function, to have that called in the event loop should the sender go away before the answer
is complete. ASGI's own way, a task that waits in `receive` beside each request, costs processor time."""
