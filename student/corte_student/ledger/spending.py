"""What was or may have been paid: one row a request, written before the request is sent.

Rule 1: a row counts as spent from the moment it exists; only the word that a request was not billed removes
it, so a kill or a lost connection errs on the dear side. Rule 2: the cap is checked in the transaction that
writes the row, over all rows of that teacher, so no other process and no restart can pass it. Rule 3: rows
are history: pruning answers leaves them. Every function works inside its caller's transaction.
"""

import sqlite3
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from corte_student.errors import BudgetExhausted, SettingsError
from corte_student.ledger.rows import Selection
from corte_student.money import Cap, show

Payment = tuple[str, str, str, str, str, float, int, str, str]
"""origin, teacher, revision, view, pixel digest, unix time, micros, currency, state"""
PAYMENT: Final = "origin, teacher, revision, view, pixel_digest, at, micros, currency, state"
_BATCH: Final = 1000


@dataclass(frozen=True, slots=True)
class Spending:
    """Requests that were or may have been paid. `unanswered` ones are under way, or lost; they count too."""

    requests: int
    answered: int
    micros: Mapping[str, int]
    """By currency, unanswered ones included; requests without a price are in none."""

    @property
    def unanswered(self) -> int:
        """Requests without an answer, which may have been billed."""
        return self.requests - self.answered

    def money(self) -> str:
        """For a person: "12.34 usd", "1.00 eur + 2.00 usd", or "no money"."""
        return " + ".join(show(micros, currency) for currency, micros in self.micros.items()) or "no money"


def total(db: sqlite3.Connection, teacher: str | None) -> Spending:
    """All that this ledger ever spent on `teacher`, or on all."""
    condition, values = Selection(teacher=teacher).condition()
    return _summed(
        db.execute(
            "SELECT currency, state, sum(requests), sum(micros) FROM spent"
            f" WHERE requests > 0 AND {condition} GROUP BY currency, state ORDER BY currency",
            values,
        )
    )


def of_answers(db: sqlite3.Connection, chosen: Selection) -> Spending:
    """What was paid for those of the chosen answers that are still held."""
    condition, values = chosen.condition()
    return _summed(
        db.execute(
            "SELECT currency, state, count(*), sum(micros) FROM spending"
            f" WHERE state = 'answered' AND {condition} AND EXISTS ("
            "SELECT 1 FROM answers AS a WHERE a.pixel_digest = spending.pixel_digest"
            " AND a.teacher = spending.teacher AND a.revision = spending.revision AND a.view = spending.view)"
            " GROUP BY currency, state ORDER BY currency",
            values,
        )
    )


def teachers(db: sqlite3.Connection) -> list[str]:
    """Who was ever asked for what may have been paid."""
    found = db.execute("SELECT DISTINCT teacher FROM spent WHERE requests > 0 ORDER BY teacher")
    return [name for (name,) in found]


def reserve(db: sqlite3.Connection, teacher: str, cost: int, currency: str, cap: Cap, free: int) -> int:
    """Write a reserved row and return its id. Raises BudgetExhausted, SettingsError."""
    if cost < 0 or (cost and not currency):
        raise SettingsError(f"a request cannot cost {cost} of {currency!r}: state a price and its currency")
    if free or cap != Cap():
        spent = total(db, teacher)
        if spent.requests < free:
            cost = 0
        _ensure_within(spent, teacher, cost, currency, cap)
    row = db.execute(
        "INSERT INTO spending (origin, teacher, at, micros, currency, state)"
        " VALUES (?, ?, ?, ?, ?, 'reserved')",
        (uuid.uuid4().hex, teacher, time.time(), cost, currency),
    ).lastrowid
    assert row is not None
    return row


def charged(db: sqlite3.Connection, reservation: int) -> int:
    """Micros that a reservation stands for: 0 where it was one of the free requests."""
    row = db.execute("SELECT micros FROM spending WHERE id = ?", (reservation,)).fetchone()
    return 0 if row is None else int(row[0])


def origin(db: sqlite3.Connection, reservation: int) -> str | None:
    """The name of a row that is unique among all ledgers; None: there is no such row."""
    row = db.execute("SELECT origin FROM spending WHERE id = ?", (reservation,)).fetchone()
    return None if row is None else str(row[0])


def answer(db: sqlite3.Connection, origin: str, revision: str, view: str, pixels: str) -> None:
    """The request was answered, and with what."""
    db.execute(
        "UPDATE spending SET state = 'answered', revision = ?, view = ?, pixel_digest = ? WHERE origin = ?",
        (revision, view, pixels, origin),
    )


def settle(db: sqlite3.Connection, reservation: int, *, billed: bool) -> None:
    """End a reservation without an answer to store. One that was answered is left alone."""
    change = "UPDATE spending SET state = 'answered'" if billed else "DELETE FROM spending"
    db.execute(f"{change} WHERE id = ? AND state = 'reserved'", (reservation,))


def batch(db: sqlite3.Connection, after: int, chosen: Selection) -> list[tuple[int, Payment]]:
    """The next chosen rows above the id `after`, each with its id; none at the end."""
    condition, values = chosen.condition()
    found = db.execute(
        f"SELECT id, {PAYMENT} FROM spending WHERE id > ? AND {condition} ORDER BY id LIMIT ?",
        (after, *values, _BATCH),
    )
    return [(number, tuple(row)) for number, *row in found]


def take_in(db: sqlite3.Connection, payments: Iterable[Payment]) -> int:
    """Add another ledger's rows; how many were new. One known as reserved may have been answered since."""
    new = 0
    for row in payments:
        new += db.execute(
            f"INSERT INTO spending ({PAYMENT}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (origin) DO NOTHING",
            row,
        ).rowcount
        name, _, revision, view, pixels, _, _, _, state = row
        if state == "answered":
            db.execute(
                "UPDATE spending SET state = 'answered', revision = ?, view = ?, pixel_digest = ?"
                " WHERE origin = ? AND state = 'reserved'",
                (revision, view, pixels, name),
            )
    return new


def _summed(rows: Iterable[tuple[str, str, int, int]]) -> Spending:
    requests = answered = 0
    micros: dict[str, int] = {}
    for currency, state, count, cost in rows:
        requests += count
        answered += count if state == "answered" else 0
        if currency:
            micros[currency] = micros.get(currency, 0) + cost
    return Spending(requests, answered, micros)


def _ensure_within(spent: Spending, teacher: str, cost: int, currency: str, cap: Cap) -> None:
    rest = (
        f"{spent.money()} spent in {spent.requests} requests ({spent.unanswered} unanswered): raise {{}}; "
        "what is paid is kept, and train goes on with --resume"
    )
    if cap.max_requests is not None and spent.requests >= cap.max_requests:
        raise BudgetExhausted(
            f"the next request to the teacher {teacher} would pass the limit of {cap.max_requests} requests; "
            + rest.format("--max-requests")
        )
    if cap.max_micros is None or cap.currency is None:
        return
    if currency != cap.currency:
        priced = f"its price is in {currency}" if currency else "it has no price"
        raise SettingsError(
            f"the budget for the teacher {teacher} is in {cap.currency} and {priced}: state --price-per-1k "
            f"in {cap.currency}"
        )
    if other := [name for name, micros in spent.micros.items() if name != cap.currency and micros]:
        raise SettingsError(
            f"this ledger spent {spent.money()} on the teacher {teacher} and the budget is in "
            f"{cap.currency}: state budget and price in {other[0]}, or use another --ledger"
        )
    if spent.micros.get(cap.currency, 0) + cost > cap.max_micros:
        raise BudgetExhausted(
            f"the next request to the teacher {teacher} costs {show(cost, currency)} and would pass the "
            f"budget of {show(cap.max_micros, cap.currency)}; " + rest.format("--budget")
        )
