"""The way of one question through the service, the same for every dialect."""

import asyncio
import time
from collections.abc import Callable

from fastapi import Request
from starlette.requests import ClientDisconnect

from corte_protocol import TeacherInfo
from corte_protocol.routes import DEADLINE_HEADER
from corte_teacher.admission import read_body
from corte_teacher.callers import Caller
from corte_teacher.errors import DeadlinePassed
from corte_teacher.extensions import ON_GONE
from corte_teacher.job import Answer, Notes, Question
from corte_teacher.service import Current, Service


def notes_of(request: Request) -> Notes:
    """The notes that `Answers` opened for this request."""
    notes: Notes = request.scope["state"]["notes"]
    return notes


def identify(service: Service, request: Request) -> Caller:
    """Who asks. Raises Unauthorized."""
    caller = service.caller(request.headers.get("authorization", ""))
    notes_of(request).owner = caller.owner
    return caller


async def ask(
    service: Service,
    request: Request,
    caller: Caller,
    current: Current,
    info: TeacherInfo,
    read: Callable[[bytes], Question[Answer]],
) -> Answer:
    """The answer to the request's body, of which `read` makes a question in a thread.

    Raises any TeacherServiceError, and ClientDisconnect once the sender has gone away.
    """
    notes = notes_of(request)
    deadline = service.deadline(request.headers.get(DEADLINE_HEADER), notes)
    with service.places.take(caller.name, caller.grant.concurrency, service.wait_s) as place:
        body = await read_body(request, info.limits, service.settings.body_timeout_s, place)
        notes.watch.mark("read")
        job = service.begin(caller, current, deadline, notes, body, read)
        del body
        if (on_gone := request.scope.get("extensions", {}).get(ON_GONE)) is not None:
            on_gone(lambda: job.fail(ClientDisconnect()))
        late = job.loop.call_later(
            max(0.0, deadline - time.perf_counter()), job.fail, DeadlinePassed("no answer in time")
        )
        try:
            answer = await job.future
        finally:
            late.cancel()
            await _until_quantum(service.settings.latency_quantum_ms / 1000, notes)
    notes.revision = current.model.info.revision
    return answer


async def _until_quantum(quantum_s: float, notes: Notes) -> None:
    """Hold an answer back until whole quanta have passed, so that time tells less of the model."""
    if quantum_s:
        passed = time.perf_counter() - notes.watch.began
        await asyncio.sleep(-passed % quantum_s)
