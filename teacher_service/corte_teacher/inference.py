"""The threads that work: a few that decode and encode, and the one that runs the model.

    event loop      submit(job) ............................................... await job.future
    workers         open: header, account, decode, prepare     finish: disclose, encode
    model thread                            forward, in batches where that pays

Rule 1: at each step the next job is that of the owner whose turn it is (`shares.py`).
Rule 2: an owner has at most a batch of images decoded ahead, so that decoded images are few whatever waits.
Rule 3: a job that nobody waits for any more is dropped before its next step.
Rule 4: with nothing else to do the model thread opens and finishes a job itself: two hand-overs cost 0.3 ms.
Rule 5: what is quick it always finishes itself: 0.30 ms for labels, and 0.42 in the caches of another core.
"""

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from corte_teacher.errors import BackendError, DeadlinePassed, TeacherServiceError
from corte_teacher.job import Job
from corte_teacher.shares import Shares

log = logging.getLogger(__name__)

Queues = dict[str, deque[Job[Any]]]
_SMOOTH = 0.1  # of each forward in the running mean of seconds a job
_WORKERS = 2  # one that decodes while one encodes; more would only take turns with the model


class Inference:
    """The queues between the event loop and the threads. Close it to end them."""

    def __init__(self) -> None:
        self._ahead_limit = 2
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._forward = threading.Condition(self._lock)
        self._shares = Shares()
        self._fresh: Queues = {}
        self._ready: Queues = {}
        self._ahead: Counter[str] = Counter()
        self._done: deque[Job[Any]] = deque()
        self._closing = False
        self._idle = False  # the model thread waits, and nobody has woken it yet
        self._seconds = 0.0
        loops = [
            *((f"corte-work-{i}", self._work_step) for i in range(_WORKERS)),
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
        return sum(map(len, list(self._fresh.values()))) + sum(map(len, list(self._ready.values())))

    def submit(self, job: Job[Any]) -> None:
        """Queue a job, from the event loop; its future ends with the answer or a TeacherServiceError."""
        with self._lock:
            self._fresh.setdefault(job.owner, deque()).append(job)
            if self._idle:
                self._idle = False
                self._forward.notify()
            else:
                self._work.notify()

    def close(self) -> None:
        """Let running steps finish and end the threads; jobs that wait are dropped. Blocking."""
        with self._lock:
            self._closing = True
            self._work.notify_all()
            self._forward.notify_all()
        for thread in self._threads:
            thread.join()

    def _work_step(self) -> bool:
        """One job opened or finished; False at the end."""
        with self._lock:
            while True:
                if self._closing:
                    return False
                if self._done:  # first what frees memory
                    job, step = self._done.popleft(), self._finish
                    break
                if (fresh := self._next_fresh()) is not None:
                    job, step = fresh, self._open
                    break
                self._work.wait()
        step(job)
        return True

    def _next_fresh(self) -> Job[Any] | None:
        """The next job to open, if any owner may have one more decoded ahead. Holds the lock."""
        owner = self._shares.first(o for o in self._fresh if self._ahead[o] < self._ahead_limit)
        if owner is None:
            return None
        self._ahead[owner] += 1
        return _pop(self._fresh, owner)

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
        """One batch through the model, or one job opened for want of any; False at the end."""
        fresh = None
        with self._lock:
            while not (jobs := self._batch()):
                if self._closing:
                    return False
                if (fresh := self._next_fresh()) is not None:
                    break
                self._idle = True
                self._forward.wait()
                self._idle = False
        if fresh is not None:
            self._open(fresh)
            return True
        for job in jobs:
            job.watch.mark("queue")
            job.batch = len(jobs)
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
            self._work.notify(len(there))
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
            wanted = bool(
                self._ready or self._fresh
            )  # if nobody else waits the estimate may as well be tested
            if job.over or (wanted and job.late(job.model.batches.seconds(height * width))):
                job.fail(DeadlinePassed("given up while it waited"))
                continue
            self._shares.charge(owner, height * width)
            if not jobs:
                alike = 1 + sum(_alike(other, job) for queue in self._ready.values() for other in queue)
                most = job.model.batches.size_for((height, width), alike)
            jobs.append(job)
        if not self._fresh and not self._ready:
            self._shares.rest()
        return jobs

    def _leave(self, job: Job[Any]) -> None:
        """A job is no longer decoded ahead. Holds the lock."""
        self._ahead[job.owner] -= 1
        if not self._ahead[job.owner]:
            del self._ahead[job.owner]
        self._work.notify()


def _run(step: Callable[[], bool]) -> None:
    while step():
        pass


def _bare(exc: TeacherServiceError) -> TeacherServiceError:
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
