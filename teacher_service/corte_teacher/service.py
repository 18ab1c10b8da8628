"""All that the routes share: the model that answers now, the keys, the bounds, the accounts, the threads."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from corte_protocol import CorteError
from corte_teacher.callers import ANYBODY, Caller, Infos
from corte_teacher.errors import DeadlinePassed, NotReady, QuotaExhausted, Unauthorized
from corte_teacher.inference import Inference
from corte_teacher.job import Answer, Job, Notes, Question
from corte_teacher.keys import KeyRing
from corte_teacher.model import Model
from corte_teacher.places import Places
from corte_teacher.quotas import Quotas, Spending
from corte_teacher.record import Observer
from corte_teacher.settings import Settings

_ON_THE_WAY_S = 0.25
"""A refusal for a deadline leaves this long before it, so that the sender hears it in time."""


@dataclass(frozen=True, slots=True)
class Current:
    """The model that answers now. A request takes this once, so that its answer is of one model."""

    model: Model
    infos: Infos


class Service:
    """One hidden model as a service. Made and used in the event loop; `close` ends the threads."""

    def __init__(
        self,
        settings: Settings,
        model: Model,
        keys: KeyRing | None,
        quotas: Quotas | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.settings = settings
        self.keys = keys
        self.observers = observers
        self.places = Places(settings.queue, settings.max_queue_bytes)
        self.inference = Inference(self._account)
        self.ready = False
        self.draining = False
        self._quotas = quotas
        self.current = Current(model, Infos(model.info))

    def swap(self, model: Model) -> None:
        """From now on `model` answers; what is under way ends on the model it began with."""
        self.current = Current(model, Infos(model.info))

    def close(self) -> None:
        """End the threads and close the accounts. Blocking."""
        self.inference.close()
        if self._quotas is not None:
            self._quotas.close()

    @property
    def has_quotas(self) -> bool:
        """Whether pixels are counted."""
        return self._quotas is not None

    def keep_quotas(self, quotas: Quotas | None) -> None:
        """Count pixels from now on, where they were not counted before."""
        self._quotas = quotas

    def caller(self, authorization: str) -> Caller:
        """Who sent this Authorization header. Raises Unauthorized."""
        if self.keys is None:
            return ANYBODY
        scheme, _, key = authorization.partition(" ")
        entry = self.keys.holder(key.strip(), datetime.now(UTC)) if scheme.lower() == "bearer" else None
        if entry is None:
            raise Unauthorized("no known key")
        return Caller(entry.name, entry.grant)

    def require_ready(self) -> None:
        """Let a question pass once the model has answered one. Raises NotReady."""
        if not self.ready:
            raise NotReady("the first forward is not done")

    def require_traffic(self) -> None:
        """Let new requests be sent here. Raises NotReady before the first forward and in a drain."""
        self.require_ready()
        if self.draining:
            raise NotReady("draining")

    @property
    def wait_s(self) -> float:
        """Seconds until what is inside will be answered: the queue by the rate at which it drains."""
        return self.places.taken * self.inference.seconds

    def begin(
        self,
        caller: Caller,
        current: Current,
        deadline: float,
        notes: Notes,
        body: bytes,
        read: Callable[[bytes], Question[Answer]],
    ) -> Job[Answer]:
        """Set the threads to work on `body`; `read` makes a question of it, in a thread.

        The future of the job ends with the answer or a TeacherServiceError; cancelling it drops the work.
        """
        job = Job(caller, current.model, body, read, deadline, notes)
        self.inference.submit(job)
        return job

    def _account(self, jobs: Sequence[Job[Any]]) -> list[CorteError | None]:
        """Take the pixels of all jobs at once; why not, for each that is refused. In a thread; may raise."""
        quotas = self._quotas
        if quotas is None:
            return [None] * len(jobs)
        spendings = [_spending(job) for job in jobs]
        now = time.time()
        refused: list[CorteError | None] = []
        for job, outcome in zip(jobs, quotas.spend_all(spendings, now), strict=True):
            if isinstance(outcome, QuotaExhausted):
                job.notes.standings = quotas.standing(job.owner, job.caller.quota, now)
            if isinstance(outcome, CorteError):
                refused.append(outcome)
            else:
                job.notes.standings = outcome
                refused.append(None)
        return refused

    def deadline(self, asked_ms: str | None, notes: Notes) -> float:
        """When a request must be answered, of `time.perf_counter`: the sender's wish within our time-out.

        Raises DeadlinePassed where the queue is already longer than that.
        """
        within = self.settings.answer_timeout_s
        if asked_ms is not None and asked_ms.isdecimal():  # anything else is as if it had not been sent
            asked = int(asked_ms[:12]) / 1000
            within = min(within, asked - min(_ON_THE_WAY_S, asked / 4))
        # without the request's own forward: an idle service must try, or one slow answer is never unlearnt
        waited = self.places.queue_of(notes.owner) * self.inference.seconds
        if waited > within:
            raise DeadlinePassed(f"{waited:.1f} s of work wait, {within:.1f} s are left", self.wait_s)
        return notes.watch.began + within


def _spending(job: Job[Any]) -> Spending:
    content = f"{job.notes.digest} {job.notes.level}".encode()
    return Spending(job.owner, job.caller.quota, job.notes.pixels, content)
