"""What a run asks of its teacher: the level of disclosure, the views, and what that costs at most.

Strategy: the teacher says what it discloses; the labeller says what it needs; the budget says how often one
image may be shown. Where only labels are disclosed the margin is void, and views and purity stand in.
"""

from dataclasses import dataclass

from corte_protocol import Disclosure, InvalidValue, TeacherInfo
from corte_student.errors import SettingsError
from corte_student.methods import Needs
from corte_student.queries import LABEL_VIEWS, Query, parse_views
from corte_student.settings import TrainSettings


@dataclass(frozen=True, slots=True)
class Terms:
    """`level` that is asked for, `queries` an image, and whether a `surrogate` stands in for the margin."""

    level: Disclosure
    queries: tuple[Query, ...]
    surrogate: bool

    def cost(self, images: int) -> str:
        """One sentence for a person: what is asked, how often, and why."""
        names = ", ".join(query.name for query in self.queries)
        count = len(self.queries)
        each = f"{count} queries an image ({names})" if count > 1 else f"one query an image ({names})"
        said = f"asks for {self.level}, {each}: at most {count * images} requests for {images} images"
        if self.surrogate:
            said += "; labels only, so votes and local purity stand in for the margin"
        return said


def settle(info: TeacherInfo, settings: TrainSettings, labeller: Needs) -> Terms:
    """The terms of a run. Raises SettingsError where the method needs more than is disclosed."""
    level = _level(info, settings)
    surrogate = level.prob_bits == 0 and labeller.needs.prob_bits > 0
    if surrogate and not labeller.surrogate:
        raise SettingsError(
            f"the teacher discloses labels only and the method {settings.method!r} needs scores: "
            "use --method corte or naive, or a teacher that discloses confidence or margin"
        )
    if not surrogate and not level.allows(labeller.needs):
        raise SettingsError(
            f"the run asks for {level} and the method {settings.method!r} needs {labeller.needs}: "
            "leave disclosure at auto, or choose another --method"
        )
    return Terms(level, _queries(settings, surrogate), surrogate)


def _queries(settings: TrainSettings, surrogate: bool) -> tuple[Query, ...]:
    if settings.views == ["auto"]:
        names = LABEL_VIEWS[: settings.max_queries] if surrogate else ("identity",)
        return parse_views(names)
    queries = parse_views(settings.views)
    if len(queries) > settings.max_queries:
        raise SettingsError(
            f"the views {', '.join(settings.views)} are {len(queries)} queries an image, "
            f"max_queries allows {settings.max_queries}: name fewer, or raise max_queries"
        )
    return queries


def _level(info: TeacherInfo, settings: TrainSettings) -> Disclosure:
    """Margin where offered, so that one paid answer serves every method."""
    offered = info.disclosure
    if settings.disclosure != "auto":
        try:
            asked = Disclosure.parse(settings.disclosure, len(info.classes))
        except InvalidValue as exc:
            raise SettingsError(f"disclosure: {exc}") from exc
        if not offered.allows(asked):
            raise SettingsError(f"the teacher discloses {offered}, not {asked}: choose at most that")
        return asked
    margin = Disclosure(2, 8)
    return margin if offered.allows(margin) else offered
