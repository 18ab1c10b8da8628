"""One training run from start to end: what `corte-student train` does, callable from Python.

images, ledger, teacher -> class map -> stream -> trainer -> RUN
"""

import asyncio
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import SecretStr

from corte_protocol import TeacherInfo
from corte_student.asking import Asker, Tally
from corte_student.checkpoint import StudentSpec, TrainState, latest, restore
from corte_student.classmap import ClassMap, load_classmap
from corte_student.data.augment import ViewSettings
from corte_student.data.folder import find_images
from corte_student.durable import write
from corte_student.ema import Ema
from corte_student.endpoints import UNSTATED, Access, Endpoint
from corte_student.errors import CheckpointError, SettingsError
from corte_student.ledger import default_ledger_path, ensure_outside
from corte_student.metering import Purse
from corte_student.models import build_student
from corte_student.optim import build_optimizer
from corte_student.plan import Plan
from corte_student.pseudo_labels import PseudoLabeller, Refinement, Selection, build_labeller
from corte_student.report.recorded import Recorded
from corte_student.report.runlog import RunLog
from corte_student.report.signals import RunWarning
from corte_student.session import Session
from corte_student.settings import TrainSettings, differences
from corte_student.stopping import on_signals
from corte_student.stream import Batch, Reading, Stream, StreamState
from corte_student.terms import Terms, settle
from corte_student.trainer import Interval, Trainer


@dataclass(frozen=True, slots=True)
class Job:
    """What to train, from whom, on what. `weights` is a folder of encoder weights (timm `local-dir:`).

    `access` says all about a teacher that is not a CoRTe service at `url`; `offline` trains on what the
    ledger holds and touches no network.
    """

    url: str
    images: Path
    out: Path
    settings: TrainSettings
    classes: Path | None = None
    weights: Path | None = None
    ledger: Path | None = None
    key: SecretStr | None = None
    insecure_http: bool = False
    resume: bool = False
    access: Access | None = None
    purse: Purse = field(default_factory=Purse)
    offline: bool = False

    @property
    def session(self) -> Session:
        """Whom to ask, and how."""
        access = self.access or Access(self.url, key=self.key, insecure_http=self.insecure_http)
        how = self.settings
        return Session(access, self.purse, self.ledger, how.deadline_s, how.in_flight, self.offline)


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended: steps done, what asking cost, which images were set aside and why.

    `stood_in` times an image took the place of one that the teacher, being away, did not answer; `missing`
    images were never seen, for that or because the plan ended before.
    """

    step: int
    tally: Tally
    aside: dict[str, str]
    stood_in: int = 0
    missing: int = 0


class Observer:
    """Told what happens, as it happens. The default tells nobody."""

    def began(
        self, info: TeacherInfo, classmap: ClassMap, terms: Terms, images: int, offline: bool, step: int
    ) -> None:
        """Before the first question and the first step."""

    def stepped(self, step: int, tally: Tally) -> None:
        """After each step: `step` are done."""

    def interval(self, interval: Interval, tally: Tally, per_second: float) -> None:
        """At each log interval; `per_second` is images a second since the last one."""

    def warned(self, warning: RunWarning) -> None:
        """When a signal says that the run goes wrong, once until it recovers."""


async def train(job: Job, observer: Observer | None = None, endpoint: Endpoint | None = None) -> Summary:
    """Run `job` to its end. Raises a CorteError; the ledger and the last checkpoint are intact then.

    `endpoint` takes the place of the one that `job.url` names; it is closed in the end either way.
    """
    observer = observer or Observer()
    settings = job.settings
    paths = find_images(job.images)
    ledger_path = job.ledger or default_ledger_path()
    ensure_outside(ledger_path, job.out)
    if latest(job.out) is not None and not job.resume:
        raise CheckpointError(
            f"{job.out} holds a run already: add --resume to go on, or choose another --out"
        )
    async with job.session.open(endpoint) as opened:
        if job.offline and job.resume:
            opened = opened.of_revision(_recorded_revision(job.out))
        info = opened.info
        classmap = load_classmap(job.classes, info) if job.classes else ClassMap.identity(info)
        state, spec = build(job, classmap, len(paths))
        terms = settle(info, settings, state.labeller)
        asker = opened.asker(terms.level)
        _begin(job, info, classmap, paths)
        if job.resume and latest(job.out) is not None:
            state = restore(job.out, state)
        observer.began(info, classmap, terms, len(paths), opened.offline, state.step)
        try:
            stood_in = await _loop(job, state, spec, paths, asker, classmap, terms, observer)
        finally:
            _record_revision(job.out, asker.revision)
        aside = {str(paths[image].relative_to(job.images)): why for image, why in state.stream.aside.items()}
        missing = int((~state.stream.seen).sum()) - len(aside)
        return Summary(state.step, asker.tally, aside, stood_in, missing)


def build(job: Job, classmap: ClassMap, images: int) -> tuple[TrainState, StudentSpec]:
    """A fresh state for `job`: the seed decides the student's random weights."""
    settings = job.settings
    torch.manual_seed(settings.seed)
    classes = len(classmap.names)
    student = build_student(
        settings.encoder,
        classes,
        weights=job.weights,
        pretrained=job.weights is None and settings.init == "imagenet",
        width=settings.decoder_width,
        stride=settings.decoder_stride,
    )
    student = student.to(device_of(settings)).to(memory_format=torch.channels_last)
    spec = StudentSpec(
        encoder=settings.encoder,
        classes=classmap.names,
        colors=classmap.colors,
        width=settings.decoder_width,
        stride=settings.decoder_stride,
        mean=tuple((student.mean / 255).flatten().tolist()),
        std=tuple((student.std / 255).flatten().tolist()),
    )
    labeller = labeller_of(settings, classes)
    state = TrainState(
        step=0,
        student=student,
        ema=Ema(student, settings.steps, settings.ema_span),
        optimizer=build_optimizer(student, settings),
        labeller=labeller,
        stream=StreamState.fresh(classes, images),
    )
    return state, spec


def labeller_of(settings: TrainSettings, classes: int) -> PseudoLabeller:
    """A fresh labeller as the settings describe it. Raises SettingsError."""
    kind = settings.threshold_kind
    value = settings.threshold_quantile if kind == "quantile" else settings.threshold
    return build_labeller(
        settings.method,
        classes,
        selection=Selection(kind, value, settings.threshold_scope),
        refinement=Refinement(
            settings.refine,
            settings.refine_from,
            settings.refine_decay,
            settings.refine_all_before,
            settings.refine_agreed,
            settings.refine_power,
            settings.rank_weights,
        ),
        least=settings.threshold,
        seed=settings.seed,
    )


def device_of(settings: TrainSettings) -> torch.device:
    """The device that the settings name; `auto` takes CUDA where there is one."""
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


async def _loop(
    job: Job,
    state: TrainState,
    spec: StudentSpec,
    paths: list[Path],
    asker: Asker,
    classmap: ClassMap,
    terms: Terms,
    observer: Observer,
) -> int:
    """Train to the end of the plan; how often an image stood in for one that the teacher owed."""
    settings = job.settings
    plan = Plan(
        len(paths),
        settings.batch,
        settings.steps,
        settings.seed,
        rare=settings.rare_share,
        temperature=settings.rare_temperature,
    )
    labeller = state.labeller
    view = ViewSettings(
        settings.height,
        settings.width,
        settings.scale_min,
        settings.scale_max,
        settings.jitter,
        settings.blur,
    )
    stream = Stream(
        paths,
        plan,
        view,
        asker,
        classmap,
        Reading(terms.queries, terms.surrogate, labeller.wants_scores, labeller.tests),
        state.stream,
        ahead=2 * settings.in_flight,
        memory_bytes=settings.memory_mb << 20,
        away_share=settings.away_share,
        skip_unknown=job.offline,
    )
    told = _teller(RunLog(job.out, step=state.step), asker, observer, settings, state.step)
    trainer = Trainer(
        state,
        settings,
        spec,
        job.out,
        device_of(settings),
        told=told,
        stepped=lambda step: observer.stepped(step, asker.tally),
    )
    # two batches ready: one being assembled while one trains is enough, more only holds memory
    queue: asyncio.Queue[Batch | None] = asyncio.Queue(maxsize=2)
    with on_signals(trainer.stop):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(stream.feed(queue, state.step))
            tasks.create_task(trainer.run(queue))
    return stream.stood_in


def _teller(
    log: RunLog, asker: Asker, observer: Observer, settings: TrainSettings, first: int
) -> Callable[[Interval], None]:
    """Writes each interval to the log and tells the observer, with the speed since the one before."""
    clock = asyncio.get_running_loop().time
    since, before = clock(), first
    monitor = Recorded.read(log.path.parent).monitor()  # a resume remembers what the run has seen

    def told(interval: Interval) -> None:
        nonlocal since, before
        now = clock()
        speed = (interval.step - before) * settings.batch / max(1e-9, now - since)
        since, before = now, interval.step
        tally = asker.tally
        warnings = monitor.update(interval)
        log.write(
            {
                "step": interval.step,
                "loss": round(interval.loss, 5),
                "kept": round(interval.kept_share, 4),
                "kept_per_class": interval.kept_per_class,
                "answered_per_class": interval.answered_per_class,
                "lr": interval.rate,
                "said_per_class": interval.said,
                "agreed_per_class": interval.agreed,
                "ema_per_class": interval.ema,
                "ema_confidence": round(interval.confidence, 4),
                "warnings": [{"code": w.code, "classes": w.classes, "message": w.message} for w in warnings],
                "images_per_second": round(speed, 2),
                "sent": tally.sent,
                "saved": tally.saved,
            }
        )
        observer.interval(interval, tally, speed)
        for warning in warnings:
            observer.warned(warning)

    return told


def _recorded_revision(out: Path) -> str | None:
    """The revision that a run learns from; None where it is not known yet."""
    try:
        revision = json.loads((out / "run.json").read_text())["revision"]
    except (OSError, ValueError, KeyError):
        return None
    return revision if revision != UNSTATED else None


def _record_revision(out: Path, revision: str) -> None:
    """Write down what a first answer stated, so that a resume holds the run to it."""
    path = out / "run.json"
    record = json.loads(path.read_text())
    if record["revision"] != revision:
        write(path, json.dumps(record | {"revision": revision}, indent=1) + "\n")


def _begin(job: Job, info: TeacherInfo, classmap: ClassMap, paths: list[Path]) -> None:
    """Write RUN/run.json, or check a resume against it. Raises SettingsError that lists the differences."""
    names = "\n".join(p.relative_to(job.images).as_posix() for p in paths)
    record: dict[str, Any] = {
        "settings": job.settings.model_dump(),
        "teacher": info.teacher,
        "revision": info.revision,
        "classes": list(classmap.names),
        "class_table": classmap.table.tolist(),
        "images": len(paths),
        "image_names": hashlib.sha256(names.encode()).hexdigest(),
    }
    path = job.out / "run.json"
    if job.resume and path.is_file():
        saved = json.loads(path.read_text())
        changed = differences(saved.pop("settings"), job.settings)
        if saved["revision"] == UNSTATED:  # stated since by the teacher's first answer
            saved["revision"] = record["revision"]
            _record_revision(job.out, info.revision)
        changed += [f"{key}: {saved[key]} -> {record[key]}" for key in saved if saved[key] != record.get(key)]
        if changed:
            raise SettingsError(
                f"{job.out} was started otherwise: {'; '.join(changed)}. "
                "Resume with the old values, or start anew with another --out"
            )
        return
    try:
        job.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
    except OSError as exc:
        raise CheckpointError(f"cannot write to {job.out}: {exc.strerror}") from exc
