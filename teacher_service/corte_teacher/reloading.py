"""What may change while the service runs: keys, noticed by themselves; model and audit log at SIGHUP."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from corte_teacher.errors import StartError, TeacherServiceError
from corte_teacher.keys import read_keys, watch_stamp
from corte_teacher.loading import Teacher, load_model, look, quotas_for
from corte_teacher.service import Service
from corte_teacher.settings import Settings

log = logging.getLogger(__name__)

_LOOK_S = 1.0  # one stat a second: a revoked key lives two seconds at most


class Reloading:
    """Brings a running service up to what the files say; what cannot be read changes nothing."""

    def __init__(
        self, settings: Settings, teacher: Teacher, service: Service, reopen: Sequence[Callable[[], None]]
    ) -> None:
        self._settings = settings
        self._service = service
        self._reopen = reopen
        self._source = teacher.source
        self._busy = asyncio.Lock()

    async def all(self) -> None:
        """Keys, audit log, and the model where its files changed; one reload at a time."""
        async with self._busy:
            for reopen in self._reopen:
                reopen()
            await self._keys()
            await self._model()

    async def watch_keys(self) -> None:
        """Read the key file again whenever it changed, for ever."""
        path = self._settings.keys
        if path is None:
            return
        seen: object = None
        while True:
            try:
                stamp: object = watch_stamp(path)
            except StartError as exc:
                stamp = str(exc)  # gone or unreadable: told once, the keys in force stay
            if seen is not None and stamp != seen:
                async with self._busy:
                    await self._keys()
            seen = stamp
            await asyncio.sleep(_LOOK_S)

    async def _keys(self) -> None:
        before = self._service.keys
        if self._settings.keys is None or before is None:
            return
        try:
            ring = await asyncio.to_thread(read_keys, self._settings.keys)
            if ring.salt != before.salt:
                raise StartError(
                    "another key file: its salt gives this service another identity; start again"
                )
            if not self._service.has_quotas:
                self._service.keep_quotas(await asyncio.to_thread(quotas_for, self._settings, ring))
        except StartError as exc:
            log.error("the keys in force stay: %s", exc)
            return
        self._service.keys = ring
        log.warning("keys read again: %d of %s", len(ring.entries), self._settings.keys)

    async def _model(self) -> None:
        old = self._service.current.model
        try:
            source, info = await asyncio.to_thread(look, self._settings, self._service.keys)
            if info == old.info and source == self._source:
                log.warning("the model is the one in force: revision %s", info.revision)
                return
            model = await asyncio.to_thread(load_model, self._settings, source, info)
            await asyncio.to_thread(model.try_out, self._settings.tried_sizes)
        except (StartError, TeacherServiceError) as exc:
            log.error("the model in force stays, revision %s: %s", old.info.revision, exc)
            return
        self._service.swap(model)
        self._source = source
        log.warning("the model is replaced: revision %s instead of %s", info.revision, old.info.revision)
