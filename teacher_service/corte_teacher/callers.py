"""Who asks, and what that caller may see: the service's policy, cut down to the key's own ceiling."""

from dataclasses import dataclass, replace

from corte_protocol import Disclosure, Limits, TeacherInfo, encode_info
from corte_teacher.keys import Grant
from corte_teacher.quotas import Quota


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of a key, or with `name` None anybody at a service without keys."""

    name: str | None
    grant: Grant

    @property
    def owner(self) -> str:
        """The name under which work and pixels are counted."""
        return self.name or ""

    @property
    def quota(self) -> Quota:
        """The caller's pixels."""
        return Quota(self.grant.pixels_per_minute, self.grant.pixels_per_day)


ANYBODY = Caller(None, Grant())


def info_for(info: TeacherInfo, grant: Grant) -> TeacherInfo:
    """What a caller may know and ask: never more than the service's own policy and limits.

    An image larger than a whole window's pixels could never be asked about, so it is beyond the limits.
    """
    most = [n for n in (grant.pixels_per_minute, grant.pixels_per_day) if n is not None]
    limits = Limits(info.limits.max_body_bytes, min(info.limits.max_pixels, *most, info.limits.max_pixels))
    policy = info.disclosure
    if grant.disclosure is not None:
        ceiling = Disclosure.parse(grant.disclosure, len(info.classes))
        bits = min(policy.prob_bits, ceiling.prob_bits)
        policy = Disclosure(min(policy.top_k, ceiling.top_k) if bits else 1, bits)
    return replace(info, disclosure=policy, limits=limits)


class Infos:
    """`info_for` and its encoding, remembered for one model: they are needed at every request."""

    def __init__(self, info: TeacherInfo) -> None:
        self._info = info
        self._known: dict[Grant, tuple[TeacherInfo, bytes]] = {}

    def of(self, grant: Grant) -> tuple[TeacherInfo, bytes]:
        """What a caller with this grant may know, also as JSON."""
        known = self._known.get(grant)
        if known is None:
            if len(self._known) >= 256:  # grants of keys long gone
                self._known.clear()
            info = info_for(self._info, grant)
            known = self._known[grant] = (info, encode_info(info))
        return known
