"""A failure of the model that a vendor's gateway passes on: 424, with the model's own status inside.

Strategy: the status inside is judged by the ordinary table, so that it is asked again only where the model's
own answer would have been; what would mean the key there does not, since the model never sees the key.
"""

from dataclasses import replace

from corte_student.endpoints.dialect import Reply, Verdict
from corte_student.endpoints.verdicts import ordinary
from corte_student.errors import Refused

_TOLD = frozenset({400, 408, 413, 415, 422, 425, 429, 500, 502, 503, 504, 529})
_TITLE = "the model behind it says so, see its log"


def model_failed(reply: Reply, inner: int | None) -> Verdict:
    """The verdict on `reply`, whose model answered `inner`; None where the gateway does not say.

    No answer at all, or one that is no failure's status, counts as a failure of this image: it is tried
    again a few times, then set aside.
    """
    status = inner if inner is not None and 400 <= inner < 600 else 500
    if status in _TOLD:
        verdict = ordinary(replace(reply, status=status), has_key=False, one_image=True, title=_TITLE)
        if verdict is not None:
            return verdict
    return Verdict(f"fails ({reply.status}): the model behind it answers {status}, see its log", Refused)
