"""A student process for tests: asks about pictures 0..N-1 and prints one line for each answer it may use.

Usage: asking_worker.py URL LEDGER N [MAX_LEDGER_BYTES]. Its exit status is that of the first error.
"""

import asyncio
import sys
from pathlib import Path

from corte_protocol import CorteError, Disclosure
from corte_student.asking import Asker, ask_info
from corte_student.endpoints import connect
from corte_student.ledger import Ledger
from pictures import make_picture


async def run(url: str, ledger_path: Path, count: int, max_bytes: int | None) -> None:
    """Ask about all pictures, four in flight."""
    ledger = Ledger.open(ledger_path, max_bytes=max_bytes)
    endpoint = connect(url, deadline_s=60, connections=4)
    try:
        info, _ = await ask_info(endpoint, ledger, url)
        asker = Asker(endpoint, ledger, info, Disclosure(2, 8), 4)

        async def one(seed: int) -> None:
            picture = make_picture(seed)
            await asker.answer(picture)
            print(picture.pixel_digest, flush=True)

        failures = await asyncio.gather(*(one(seed) for seed in range(count)), return_exceptions=True)
        for failure in failures:
            if isinstance(failure, BaseException):
                raise failure
    finally:
        await endpoint.aclose()
        ledger.close()


def main() -> int:
    """Run as a program."""
    url, path, count, *rest = sys.argv[1:]
    try:
        asyncio.run(run(url, Path(path), int(count), int(rest[0]) if rest else None))
    except CorteError as exc:
        print(exc, file=sys.stderr)
        return int(getattr(exc, "exit_code", 1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
