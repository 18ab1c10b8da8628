"""A ledger, a teacher and what it says of itself, open together: what every verb that may ask begins with."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from corte_protocol import Disclosure, TeacherInfo
from corte_student.asking import Asker, ask_info
from corte_student.endpoints import Access, Endpoint, ForeignEndpoint, connect
from corte_student.ledger import Ledger, default_ledger_path
from corte_student.metering import Purse


@dataclass(frozen=True, slots=True)
class Session:
    """Whom to ask, what it may cost, where answers are kept. `offline`: the network is not touched."""

    access: Access
    purse: Purse = field(default_factory=Purse)
    ledger: Path | None = None
    deadline_s: float = 120.0
    in_flight: int = 8
    offline: bool = False

    @asynccontextmanager
    async def open(self, endpoint: Endpoint | None = None) -> AsyncIterator["Opened"]:
        """Everything open, closed at the end. `endpoint` takes the place of the one that `access` names.

        A teacher that cannot be reached is offline; what it said last stands in. Raises a StudentError.
        """
        ledger = await asyncio.to_thread(Ledger.open, self.ledger or default_ledger_path())
        try:
            access = replace(self.access, paid=self.purse.paid)
            teacher = endpoint or connect(access, deadline_s=self.deadline_s, connections=self.in_flight)
            try:
                known = None if self.offline else teacher
                info, offline = await ask_info(known, ledger, access.url)
                config = access.config
                if (
                    offline
                    and isinstance(teacher, ForeignEndpoint)
                    and (config is None or not config.classes)
                ):
                    teacher.assume(info)
                yield Opened(self, teacher, ledger, info, offline)
            finally:
                await teacher.aclose()
        finally:
            ledger.close()


@dataclass(frozen=True, slots=True)
class Opened:
    """What `Session.open` gives."""

    session: Session
    endpoint: Endpoint
    ledger: Ledger
    info: TeacherInfo
    offline: bool

    def of_revision(self, revision: str | None) -> "Opened":
        """The same, held to the answers of one revision; None holds it to nothing."""
        if revision is None:
            return self
        return replace(self, info=replace(self.info, revision=revision))

    def asker(self, need: Disclosure) -> Asker:
        """An asker at one level. Raises Refused where the teacher discloses less."""
        session = self.session
        return Asker(
            self.endpoint,
            self.ledger,
            self.info,
            need,
            session.in_flight,
            offline=self.offline,
            purse=session.purse,
            url=session.access.url,
        )
