"""`corte-teacher keys create | rotate | change | list | revoke`: keys and their limits, in one file.

Standard output of `create` and `rotate` is the key alone, so that a script can take it.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from corte_teacher.errors import StartError
from corte_teacher.keys import (
    NO_OWN_LIMITS,
    Grant,
    KeyEntry,
    change_grant,
    create_key,
    read_keys,
    revoke_key,
    rotate_key,
)

keys_app = typer.Typer(help="Keys of clients: shown once, stored as hashes.", no_args_is_help=True)

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_SPANS = {"m": "minutes", "h": "hours", "d": "days"}
_NOTICED = "A service that runs with this file notices within two seconds, without a restart."

KeyFile = Annotated[
    Path, typer.Option("--keys", envvar="CORTE_TEACHER_KEYS", help="The key file.", show_default=True)
]
DEFAULT_KEYS = Path("teacher-keys.json")
Name = Annotated[str, typer.Argument(help="Whose key it is.")]
Level = Annotated[
    str | None,
    typer.Option(
        "--disclosure", help="The most that this name is told: labels, confidence, margin, topk:K, full."
    ),
]
PerMinute = Annotated[
    str | None, typer.Option("--pixels-per-minute", metavar="N", help="Pixels a minute, as 500k or 40M.")
]
PerDay = Annotated[
    str | None, typer.Option("--pixels-per-day", metavar="N", help="Pixels a day, as 40M or 2G.")
]
Concurrency = Annotated[
    str | None, typer.Option("--concurrency", metavar="N", help="Requests in flight at once.")
]


@keys_app.command("create")
def keys_create(
    name: Name,
    disclosure: Level = None,
    pixels_per_minute: PerMinute = None,
    pixels_per_day: PerDay = None,
    concurrency: Concurrency = None,
    expires: Annotated[
        str | None, typer.Option(metavar="SPAN", help="How long it is good: 30m, 12h, 90d (for ever).")
    ] = None,
    keys: KeyFile = DEFAULT_KEYS,
) -> None:
    """Make a key and print it, this once. What is not limited here is limited by the service only."""
    grant = _amended(NO_OWN_LIMITS, disclosure, pixels_per_minute, pixels_per_day, concurrency)
    end = None if expires is None else datetime.now(UTC) + read_span("--expires", expires)
    typer.echo(create_key(keys, name, grant, end))
    typer.echo(
        f"This key is not shown again; {keys} holds only its hash. Start the service with --keys {keys}. "
        f"{_NOTICED}",
        err=True,
    )


@keys_app.command("rotate")
def keys_rotate(
    name: Name,
    overlap: Annotated[
        str, typer.Option(metavar="SPAN", help="How long the older key stays good: 30m, 12h, 7d.")
    ] = "7d",
    keys: KeyFile = DEFAULT_KEYS,
) -> None:
    """Make the successor of a key and print it, this once; the older one stays good for a while."""
    typer.echo(rotate_key(keys, name, read_span("--overlap", overlap)))
    typer.echo(f"This key is not shown again. {_NOTICED} The keys of {name} are now:", err=True)
    for row in _table([entry for entry in read_keys(keys).entries if entry.name == name]):
        typer.echo(row, err=True)


@keys_app.command("change")
def keys_change(
    name: Name,
    disclosure: Level = None,
    pixels_per_minute: PerMinute = None,
    pixels_per_day: PerDay = None,
    concurrency: Concurrency = None,
    keys: KeyFile = DEFAULT_KEYS,
) -> None:
    """Change limits of all keys of a name; what is not given stays, `none` takes a limit away."""
    given = (disclosure, pixels_per_minute, pixels_per_day, concurrency)
    if given == (None,) * 4:
        raise StartError(
            "nothing to change: give --disclosure, --pixels-per-minute, --pixels-per-day or --concurrency"
        )
    change_grant(keys, name, lambda old: _amended(old, *given))
    for row in _table([entry for entry in read_keys(keys).entries if entry.name == name]):
        typer.echo(row)
    typer.echo(_NOTICED)


@keys_app.command("list")
def keys_list(keys: KeyFile = DEFAULT_KEYS) -> None:
    """Print a line for each key: name, how it begins, when it was made, when it ends, limits."""
    for row in _table(read_keys(keys).entries):
        typer.echo(row)


@keys_app.command("revoke")
def keys_revoke(
    name: Name,
    prefix: Annotated[
        str | None, typer.Option(metavar="P", help="Only the key that begins ct_P_, as `list` shows it.")
    ] = None,
    keys: KeyFile = DEFAULT_KEYS,
) -> None:
    """End all keys of a name, or one of them."""
    if prefix is not None and prefix.startswith("ct_"):
        prefix = prefix.split("_")[1]
    revoke_key(keys, name, prefix)
    what = f"All keys of {name} are" if prefix is None else f"The key ct_{prefix}_... of {name} is"
    typer.echo(f"{what} revoked. {_NOTICED}")


def read_count(option: str, text: str) -> int:
    """Read 250, 500k, 40M or 2G: decimal units. Raises StartError that names the option."""
    match = re.fullmatch(r"([0-9]{1,15})([kMG]?)", text)
    if not match:
        raise StartError(f"{option} is {text!r}: give a whole number, as 250, 500k, 40M or 2G")
    return int(match[1]) * _UNITS[match[2]]


def count_text(count: int) -> str:
    """The shortest text that `read_count` reads as `count`."""
    unit = max((unit for unit, size in _UNITS.items() if count % size == 0), key=lambda unit: _UNITS[unit])
    return f"{count // _UNITS[unit]}{unit}"


def read_span(option: str, text: str) -> timedelta:
    """Read 30m, 12h or 90d. Raises StartError that names the option."""
    match = re.fullmatch(r"([0-9]{1,5})([mhd])", text)
    if not match:
        raise StartError(f"{option} is {text!r}: give minutes, hours or days, as 30m, 12h or 90d")
    return timedelta(**{_SPANS[match[2]]: int(match[1])})


def _amended(
    old: Grant, disclosure: str | None, per_minute: str | None, per_day: str | None, concurrency: str | None
) -> Grant:
    """`old` with the limits that were given; the text `none` takes one away."""

    def count(option: str, text: str | None, before: int | None) -> int | None:
        if text is None:
            return before
        return None if text == "none" else read_count(option, text)

    level = old.disclosure if disclosure is None else disclosure
    return Grant(
        None if level == "none" else level,
        count("--pixels-per-minute", per_minute, old.pixels_per_minute),
        count("--pixels-per-day", per_day, old.pixels_per_day),
        count("--concurrency", concurrency, old.concurrency),
    )


def _table(entries: Sequence[KeyEntry]) -> Iterator[str]:
    """One aligned line a key."""
    now = datetime.now(UTC)
    rows = [(e.name, f"ct_{e.prefix}_...", e.created, _end(e, now), _limits(e.grant)) for e in entries]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def _end(entry: KeyEntry, now: datetime) -> str:
    if entry.expires is None:
        return "never expires"
    return f"{'expires' if entry.live(now) else 'expired'} {entry.expires}"


def _limits(grant: Grant) -> str:
    counts = (
        (grant.pixels_per_minute, "pixels a minute"),
        (grant.pixels_per_day, "pixels a day"),
        (grant.concurrency, "at once"),
    )
    parts = [] if grant.disclosure is None else [grant.disclosure]
    parts += [f"{count_text(count)} {what}" for count, what in counts if count is not None]
    return ", ".join(parts) or "no own limits"
