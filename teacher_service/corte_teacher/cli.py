"""`corte-teacher serve | check | keys`. Prints pages for people; errors are one line and status 2."""

import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from corte_protocol import CorteError
from corte_teacher.errors import StartError
from corte_teacher.keys import create_key, read_keys, revoke_key
from corte_teacher.settings import Settings, read_settings

verbs = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
keys_app = typer.Typer(help="Keys of clients: shown once, stored as hashes.", no_args_is_help=True)
verbs.add_typer(keys_app, name="keys")

Backend = Annotated[str | None, typer.Option(help="street, onnx, timm or package.module:factory (street)")]
Model = Annotated[Path | None, typer.Option(help="The model file.")]
CardFile = Annotated[Path | None, typer.Option(help="The model's card, TOML (beside the model).")]
Level = Annotated[
    str | None,
    typer.Option(help="The most that is disclosed: labels, confidence, margin, topk:K, full (margin)"),
]
Threads = Annotated[int | None, typer.Option(help="Threads of one inference, 0 for all cores (0)")]
KeyFile = Annotated[
    Path, typer.Option("--keys", envvar="CORTE_TEACHER_KEYS", help="The key file.", show_default=True)
]
DEFAULT_KEYS = Path("teacher-keys.json")


@verbs.command()
def serve(
    backend: Backend = None,
    model: Model = None,
    card: CardFile = None,
    disclosure: Level = None,
    host: Annotated[str | None, typer.Option(help="Where to listen (127.0.0.1)")] = None,
    port: Annotated[int | None, typer.Option(help="0 for any free one (8000)")] = None,
    open_: Annotated[bool | None, typer.Option("--open", help="Ask for no key; loopback only.")] = None,
    keys: Annotated[Path | None, typer.Option(help="The key file of `corte-teacher keys`.")] = None,
    behind_proxy: Annotated[
        bool | None, typer.Option("--behind-proxy", help="Plain HTTP off loopback: TLS ends in front of it.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Serve TLS with this certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    threads: Threads = None,
    queue: Annotated[int | None, typer.Option(help="Requests that may wait (64)")] = None,
    max_body_bytes: Annotated[int | None, typer.Option(help="(16 MiB)")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="(4 Mi)")] = None,
) -> None:
    """Hide a model behind agreed predictions. Every option also as CORTE_TEACHER_NAME."""
    flags = {name: value for name, value in locals().items() if name != "open_"} | {"open": open_}
    settings = read_settings(flags)
    settings.check_binding()
    from corte_teacher.server import Teacher, load_teacher
    from corte_teacher.server import serve as run

    teacher: Teacher = load_teacher(settings)
    run(settings, teacher, lambda url: _start_page(settings, teacher, url))


def _start_page(settings: Settings, teacher: Any, url: str) -> None:
    info = teacher.info
    if teacher.keys is None:
        access = "open: no key asked for"
    else:
        names = ", ".join(entry.name for entry in teacher.keys.entries)
        access = f"{len(teacher.keys.entries)} key(s): {names}"
    print(f"CoRTe teacher, listening on {url}")
    print(f"  classes      {len(info.classes)}: {', '.join(info.classes)}")
    print(f"  disclosure   {info.disclosure} (the most a client can get)")
    print(f"  access       {access}")
    print(f"  revision     {info.revision}")
    print(f"  limits       {info.limits.max_body_bytes} bytes, {info.limits.max_pixels} pixels an image")
    if settings.backend == "street":
        print("  model        the embedded demonstration model, public")
    print(f"  train on it  corte-student train --teacher-url {url} --images DIR --out RUN", flush=True)


@verbs.command()
def check(
    backend: Backend = None,
    model: Model = None,
    card: CardFile = None,
    disclosure: Level = None,
    image: Annotated[Path | None, typer.Option(help="A picture to ask about (a gradient)")] = None,
    threads: Threads = None,
) -> None:
    """Load the model, ask it about one image, and print what a client would see."""
    flags = {name: value for name, value in locals().items() if name != "image"}
    settings = read_settings(flags)  # nothing listens, so the binding rules do not apply
    from corte_teacher.check import report
    from corte_teacher.server import load_teacher

    body = None
    if image is not None:
        try:
            body = image.read_bytes()
        except OSError as exc:
            raise StartError(f"the image {image} cannot be read: {exc.strerror}") from exc
    for line in report(load_teacher(settings), body, settings):
        print(line)


@keys_app.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="Whose key it is.")], keys: KeyFile = DEFAULT_KEYS
) -> None:
    """Make a key and print it, this once."""
    key = create_key(keys, name)
    print(key)
    print(
        f"This key is not shown again; {keys} holds only its hash. Start the service with --keys {keys}.",
        file=sys.stderr,
    )


@keys_app.command("list")
def keys_list(keys: KeyFile = DEFAULT_KEYS) -> None:
    """Print the names of all keys."""
    for entry in read_keys(keys).entries:
        print(f"{entry.name}  ct_{entry.prefix}_...  {entry.created}")


@keys_app.command("revoke")
def keys_revoke(
    name: Annotated[str, typer.Argument(help="Whose key it is.")], keys: KeyFile = DEFAULT_KEYS
) -> None:
    """Take a key out; a running service notices at its next start."""
    revoke_key(keys, name)
    print(f"{name} is revoked. Start the service again for it to take effect.")


def app() -> None:
    """The console entry point: errors of ours are one line on stderr and status 2."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Pillow warns about large pictures; the service refuses them by its own limit.
    warnings.filterwarnings("ignore", module="PIL")
    try:
        verbs()
    except CorteError as exc:
        print(f"corte-teacher: {exc}", file=sys.stderr)
        raise SystemExit(2) from None
