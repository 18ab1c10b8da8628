"""`corte-teacher serve | check | keys`. Prints pages for people; errors are one line and status 2."""

import logging
import sys
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from corte_protocol import CorteError
from corte_teacher.cli_keys import keys_app
from corte_teacher.errors import StartError
from corte_teacher.settings import Settings, read_settings

verbs = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
verbs.add_typer(keys_app, name="keys")

Backend = Annotated[
    str | None,
    typer.Option(help="street, onnx, timm, exported, transformers or package.module:factory (street)"),
]
Model = Annotated[Path | None, typer.Option(help="The model file, or its folder.")]
CardFile = Annotated[Path | None, typer.Option(help="The model's card, TOML (beside the model).")]
Level = Annotated[
    str | None,
    typer.Option(help="The most that is disclosed: labels, confidence, margin, topk:K, full (margin)"),
]
Threads = Annotated[int | None, typer.Option(help="Threads of one inference, 0 for all cores (0)")]


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
    sizes: Annotated[
        str | None, typer.Option(help="Image sizes to be ready for, HxW,HxW: tried before /readyz (64x96)")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Images in one forward at most, where it pays (8)")
    ] = None,
    queue: Annotated[int | None, typer.Option(help="Requests inside at most (64)")] = None,
    max_queue_bytes: Annotated[
        int | None, typer.Option(help="Bodies inside at most, in bytes (256 MiB)")
    ] = None,
    max_body_bytes: Annotated[int | None, typer.Option(help="(16 MiB)")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="(4 Mi)")] = None,
    max_connections: Annotated[int | None, typer.Option(help="(1024)")] = None,
    drain_s: Annotated[
        float | None, typer.Option(help="Seconds to serve on after SIGTERM, unready, before the end (5)")
    ] = None,
    latency_quantum_ms: Annotated[
        float | None, typer.Option(help="Answer only at multiples of this, against timing (0)")
    ] = None,
    quotas: Annotated[
        str | None, typer.Option(help="Where pixels are counted: a file, or redis://... for replicas")
    ] = None,
    audit_log: Annotated[Path | None, typer.Option(help="Append who asked about which digest.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Prometheus metrics on this port (none)")] = None,
    metrics_host: Annotated[str | None, typer.Option(help="(127.0.0.1)")] = None,
    otel: Annotated[
        bool | None, typer.Option("--otel", help="Send traces; set OTEL_EXPORTER_OTLP_ENDPOINT.")
    ] = None,
    docs: Annotated[bool | None, typer.Option("--docs", help="Serve /openapi.json, without a key.")] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json (text)")] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info (a line a request), warning, error (warning)")
    ] = None,
    workers: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Hide a model behind agreed predictions. Every option also as CORTE_TEACHER_NAME."""
    flags = {name: value for name, value in locals().items() if name not in ("open_", "workers")}
    if workers is not None:
        raise StartError(
            "--workers is not offered: every worker would load the model once more and count keys alone. One "
            "process fills its device; for more, run replicas behind a proxy with --quotas redis://..."
        )
    settings = read_settings(flags | {"open": open_})
    settings.check_binding()
    from corte_teacher.loading import load_teacher
    from corte_teacher.logs import configure
    from corte_teacher.server import serve as run

    configure(settings.log_format, settings.log_level)
    teacher = load_teacher(settings)
    run(settings, teacher, lambda url: _start_page(settings, teacher, url))


def _start_page(settings: Settings, teacher: Any, url: str) -> None:
    info = teacher.info
    if teacher.keys is None:
        access = "open: no key asked for"
    else:
        live = [entry.name for entry in teacher.keys.entries if entry.live(datetime.now(UTC))]
        access = f"{len(live)} key(s): {', '.join(sorted(set(live)))}"
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
    from corte_teacher.loading import load_teacher

    body = None
    if image is not None:
        try:
            body = image.read_bytes()
        except OSError as exc:
            raise StartError(f"the image {image} cannot be read: {exc.strerror}") from exc
    for line in report(load_teacher(settings), body):
        print(line)


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
