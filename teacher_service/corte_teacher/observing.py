"""Telling the observers of a finished request. What an observer does wrong costs no request."""

import logging
from collections.abc import Iterable

from corte_teacher.record import Observer, Record

log = logging.getLogger(__name__)


def tell(observers: Iterable[Observer], record: Record) -> None:
    """Call each observer once. One that raises is logged with the request's id; the others are still told."""
    for observer in observers:
        try:
            observer(record)
        except Exception:  # any of them: the answer is sent, and what counts it must not undo that
            log.exception(
                "%s: observer %s failed",
                record.request_id,
                getattr(observer, "__qualname__", type(observer).__name__),
                extra={"request_id": record.request_id},
            )
