"""How every verb gets at a teacher: the flags about it, and what they mean together."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corte_student.cli.keys import KEY_VARIABLE, read_key
from corte_student.errors import SettingsError

if TYPE_CHECKING:  # loaded inside the functions: --help must stay quick
    from corte_student.endpoints import Access
    from corte_student.metering import Purse
    from corte_student.money import Price

TeacherUrl = Annotated[
    str | None,
    typer.Option("--teacher-url", help="Where the teacher answers, for example http://127.0.0.1:8000"),
]
TeacherKind = Annotated[
    str | None,
    typer.Option(
        "--teacher-kind",
        help="corte, openinference, huggingface, sagemaker, vertex, azureml, roboflow, replicate, custom, or "
        "package.module:factory; by default what the URL can only mean, else corte",
    ),
]
TeacherConfigFile = Annotated[
    Path | None, typer.Option("--teacher-config", help="TOML file: classes, price and shape of a teacher")
]
KeyFile = Annotated[
    Path | None, typer.Option("--key-file", help=f"File that holds the key; otherwise {KEY_VARIABLE}")
]
InsecureHttp = Annotated[
    bool, typer.Option("--insecure-http", help="Send the key over plain http to another machine")
]
LedgerFile = Annotated[
    Path | None, typer.Option("--ledger", help="Where answers are kept; by default one file per user")
]
DeadlineS = Annotated[
    float, typer.Option("--deadline", min=0.1, help="Seconds for one request, retries included")
]
PricePer1k = Annotated[
    str | None,
    typer.Option("--price-per-1k", help="What 1000 requests cost, for example 1.50usd (no currency: usd)"),
]
Budget = Annotated[
    str | None,
    typer.Option("--budget", help="Most that may ever be spent on this teacher, for example 20usd"),
]
MaxRequests = Annotated[
    int | None, typer.Option("--max-requests", min=0, help="Most requests ever sent to this teacher")
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Touch no network: use what the ledger holds, and nothing else")
]


def access_of(
    url: str | None,
    kind: str | None,
    config_file: Path | None,
    key_file: Path | None,
    *,
    insecure_http: bool = False,
) -> "Access":
    """Flags and `--teacher-config` as one; a kind that was guessed is said. Raises SettingsError."""
    from corte_student.endpoints import Access, guess_kind
    from corte_student.endpoints.config import read_config

    config = None if config_file is None else read_config(config_file)
    url = url or (config.url if config else None)
    if url is None:
        raise SettingsError("name the teacher with --teacher-url, or with url = in --teacher-config")
    if kind is None and (config is None or config.kind is None) and (guess := guess_kind(url)) is not None:
        typer.echo(f"teacher kind {guess}, by its URL (--teacher-kind says otherwise)", err=True)
        kind = guess
    return Access(url, kind, config, read_key(key_file), insecure_http)


def purse_of(
    access: "Access",
    price_per_1k: str | None = None,
    budget: str | None = None,
    max_requests: int | None = None,
    recipe_price: "Price | None" = None,
) -> "Purse":
    """What a request costs (flag over recipe over config) and what may be spent. Raises SettingsError."""
    from corte_student.metering import Purse
    from corte_student.money import cap_from

    price = _flag_price(price_per_1k) or recipe_price
    if price is None and access.config is not None:
        price = access.config.priced()
    return Purse(price, cap_from(budget, max_requests, price))


def _flag_price(text: str | None) -> "Price | None":
    """`--price-per-1k`: an amount, in US dollars where no currency is given."""
    from corte_student.money import Price, parse_price

    if text is None:
        return None
    if text.strip().replace(".", "", 1).isdecimal():
        return Price.of(text.strip(), "usd")
    return parse_price(text)
