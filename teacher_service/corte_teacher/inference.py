"""The threads that work: a few that decode and encode, and the one that runs the model.

    event loop      submit(job) ......................................................... await job.future
    workers         admit: header, account     open: decode, prepare       finish: disclose, encode
    model thread                                             forward, in batches where that pays

Rule 1: at each step the next job is that of the owner whose turn it is (`shares.py`).
Rule 2: an owner has at most a batch of images decoded ahead, so that decoded images are few whatever waits.
Rule 3: a job that nobody waits for any more is dropped before its next step.
Rule 4: with nothing else to do the model thread does all steps itself: two hand-overs cost 0.3 ms.
Rule 5: what is quick it always finishes itself: 0.30 ms for labels, and 0.42 in the caches of another core.
Rule 6: jobs of one owner are admitted together, `_GROUP` at most and just before the first is opened: an
account is kept with one write, which takes 0.3 to 0.5 ms of each request by itself.
"""

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from corte_protocol import CorteError
from corte_teacher.errors import BackendError, DeadlinePassed, TeacherServiceError
from corte_teacher.job import Job
from corte_teacher.shares import Shares

log = logging.getLogger(__name__)

Queues = dict[str, deque[Job[Any]]]
Account = Callable[[Sequence[Job[Any]]], Sequence[CorteError | None]]
_GROUP = 8
_SMOOTH = 0.1  # of each forward in the running mean of seconds a job
_WORKERS = 2  # one that decodes while one encodes; more would only take turns with the model


class Inference:
    """The queues between the event loop and the threads. Close it to end them.

    `account` takes the pixels of jobs, in a thread: for each None, or why it is refused.
    """

    def __init__(self, account: Account) -> None:
        self._account = account
        self._ahead_limit = 2
        self._lock = threading.Lock()
        self._forward = threading.Condition(self._lock)
        self._resting: list[threading.Condition] = []  # a worker each; the last has the warmest caches
        self._shares = Shares()
        self._fresh: Queues = {}
        self._admitting: set[str] = set()  # owners of whom a group is being admitted
        self._admitted: Queues = {}
        self._ready: Queues = {}
        self._ahead: Counter[str] = Counter()
        self._done: deque[Job[Any]] = deque()
        self._closing = False
        self._idle = False  # the model thread waits, and nobody has woken it yet
        self._seconds = 0.0
        loops = [
            *((f"corte-work-{i}", self._worker()) for i in range(_WORKERS)),
            ("corte-model", self._model_step),
        ]
        self._threads = [threading.Thread(target=_run, args=(step,), name=name) for name, step in loops]
        for thread in self._threads:
            thread.start()

    @property
    def seconds(self) -> float:
        """The running mean of the model thread's time a job; 0 before the first."""
        return self._seconds

    @property
    def waiting(self) -> int:
        """Jobs before their forward."""
        return sum(
            len(jobs) for queues in (self._fresh, self._admitted, self._ready) for jobs in [*queues.values()]
        )

    def submit(self, job: Job[Any]) -> None:
        """Queue a job, from the event loop; its future ends with the answer or a TeacherServiceError."""
        with self._lock:
            self._fresh.setdefault(job.owner, deque()).append(job)
            if self._idle:
                self._idle = False
                self._forward.notify()
            else:
                self._wake_for(job.owner)

    def close(self) -> None:
        """Let running steps finish and end the threads; jobs that wait are dropped. Blocking."""
        with self._lock:
            self._closing = True
            self._wake(_WORKERS)
            self._forward.notify_all()
        for thread in self._threads:
            thread.join()

    def _worker(self) -> Callable[[], bool]:
        """The loop of one worker: a step towards or after a forward; False at the end."""
        rest = threading.Condition(self._lock)

        def step() -> bool:
            with self._lock:
                while True:
                    if self._closing:
                        return False
                    work = self._last() or self._next()  # first what frees memory
                    if work is not None:
                        break
                    self._resting.append(rest)
                    rest.wait()
            work()
            return True

        return step

    def _wake(self, count: int) -> None:
        """Wake so many workers, if they rest. Holds the lock."""
        for _ in range(min(count, len(self._resting))):
            self._resting.pop().notify()

    def _wake_for(self, owner: str) -> None:
        """Wake a worker where an owner has a step to take: in vain it costs two switches. Holds the lock."""
        if self._may_go_on(owner):
            self._wake(1)

    def _may_go_on(self, owner: str) -> bool:
        """Whether a job of an owner may be admitted or opened. Holds the lock."""
        if self._ahead[owner] >= self._ahead_limit:
            return False
        return owner in self._admitted or (owner in self._fresh and owner not in self._admitting)

    def _last(self) -> Callable[[], None] | None:
        """The step after a forward. Holds the lock."""
        return partial(self._finish, self._done.popleft()) if self._done else None

    def _next(self) -> Callable[[], None] | None:
        """The next step towards a forward, of the owner whose turn it is. Holds the lock."""
        owner = self._shares.first(filter(self._may_go_on, dict.fromkeys((*self._admitted, *self._fresh))))
        if owner is None:
            return None
        if owner in self._admitted:
            self._ahead[owner] += 1
            return partial(self._open, _pop(self._admitted, owner))
        self._admitting.add(owner)
        group = [_pop(self._fresh, owner) for _ in range(min(_GROUP, len(self._fresh[owner])))]
        return partial(self._admit, owner, group)

    def _admit(self, owner: str, group: list[Job[Any]]) -> None:
        judged = [job for job in group if self._guarded(job, job.judge)]
        for job in judged:
            job.watch.mark("queue")  # the others of the group were judged
        admitted = []
        for job, refused in zip(judged, self._accounted(judged), strict=True):
            job.watch.mark("decode")
            if refused is None:
                admitted.append(job)
            else:
                job.fail(_bare(refused))
        with self._lock:
            self._admitting.remove(owner)
            if admitted:
                self._admitted.setdefault(owner, deque()).extend(admitted)
            # one is for this thread
            self._wake(min(len(admitted), self._ahead_limit - self._ahead[owner]) - 1)

    def _accounted(self, jobs: list[Job[Any]]) -> Sequence[CorteError | None]:
        if not jobs:
            return []
        try:
            return self._account(jobs)
        except TeacherServiceError as exc:
            failure: CorteError = exc
        except Exception as exc:  # as in `_guarded`
            log.exception("accounting failed")
            failure = BackendError(f"{type(exc).__name__}: {exc}")
        return [failure] * len(jobs)

    def _open(self, job: Job[Any]) -> None:
        opened = self._guarded(job, job.open)
        with self._lock:
            if opened:
                self._ready.setdefault(job.owner, deque()).append(job)
                self._forward.notify()
            else:
                self._leave(job)

    def _finish(self, job: Job[Any]) -> None:
        self._guarded(job, lambda: job.settle(job.finish()))

    def _guarded(self, job: Job[Any], step: Callable[[], None]) -> bool:
        """One step of a job that somebody still waits for; its failure is the job's."""
        job.watch.mark("queue")
        if job.over:
            job.fail(DeadlinePassed("given up while it waited"))
            return False
        try:
            step()
        except TeacherServiceError as exc:
            job.fail(_bare(exc))
            return False
        except Exception as exc:  # a defect of ours must not end the thread that all share
            log.exception("a step failed")
            job.fail(BackendError(f"{type(exc).__name__}: {exc}"))
            return False
        return True

    def _model_step(self) -> bool:
        """One batch through the model, or a step towards one for want of any; False at the end."""
        step = None
        with self._lock:
            while not (jobs := self._batch()):
                if self._closing:
                    return False
                if (step := self._next()) is not None:
                    break
                self._idle = True
                self._forward.wait()
                self._idle = False
        if step is not None:
            step()
            return True
        for job in jobs:
            job.watch.mark("queue")
            job.notes.batch = len(jobs)
        began = jobs[0].watch.began + jobs[0].watch.total
        results = jobs[0].model.run([job.ready for job in jobs if job.ready is not None])
        for job, result in zip(jobs, results, strict=True):
            job.ready = None
            job.watch.mark("forward")
            if isinstance(result, Exception):
                job.fail(result)
            else:
                job.planes = result
        took = (jobs[0].watch.began + jobs[0].watch.total - began) / len(jobs)
        self._seconds += (took - self._seconds) * (_SMOOTH if self._seconds else 1.0)
        with self._lock:
            self._ahead_limit = 1 + jobs[0].model.batches.largest
            alone = len(jobs) == 1 and not self._ready
            here = [job for job in jobs if job.planes is not None and (alone or job.quick)]
            there = [job for job in jobs if job.planes is not None and not (alone or job.quick)]
            self._done.extend(there)
            self._wake(len(there))
        for job in here:
            self._finish(job)
        return True

    def _batch(self) -> list[Job[Any]]:
        """The next job, and more of its size and model where a batch of that many pays. Holds the lock."""
        jobs: list[Job[Any]] = []
        most = 1
        while len(jobs) < most:
            owner = self._shares.first(
                o for o, queue in self._ready.items() if not jobs or _alike(queue[0], jobs[0])
            )
            if owner is None:
                break
            job = _pop(self._ready, owner)
            self._leave(job)
            assert job.ready is not None
            height, width = job.ready.shape[:2]
            wanted = self._ready or self._queued  # if nobody else waits the estimate may as well be tested
            if job.over or (wanted and job.late(job.model.batches.seconds(height * width))):
                job.fail(DeadlinePassed("given up while it waited"))
                continue
            self._shares.charge(owner, height * width)
            if not jobs:
                alike = 1 + sum(_alike(other, job) for queue in self._ready.values() for other in queue)
                most = job.model.batches.size_for((height, width), alike)
            jobs.append(job)
        if not self._queued and not self._ready:
            self._shares.rest()
        return jobs

    @property
    def _queued(self) -> bool:
        """Whether jobs wait to be opened. Holds the lock."""
        return bool(self._fresh or self._admitting or self._admitted)

    def _leave(self, job: Job[Any]) -> None:
        """A job is no longer decoded ahead. Holds the lock."""
        self._ahead[job.owner] -= 1
        if not self._ahead[job.owner]:
            del self._ahead[job.owner]
        self._wake_for(job.owner)


def _run(step: Callable[[], bool]) -> None:
    while step():
        pass


def _bare(exc: CorteError) -> CorteError:
    """A failure without its way here, whose frames would keep the body until a collection of cycles."""
    link: BaseException | None = exc
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return exc


def _pop(queues: Queues, owner: str) -> Job[Any]:
    job = queues[owner].popleft()
    if not queues[owner]:
        del queues[owner]
    return job


def _alike(one: Job[Any], other: Job[Any]) -> bool:
    """Whether two jobs may share a forward."""
    assert one.ready is not None and other.ready is not None
    return one.model is other.model and one.ready.shape == other.ready.shape
