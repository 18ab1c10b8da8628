"""The only maker of a Prediction in the service: what leaves is decided here and nowhere else."""

from corte_protocol import Disclosure, Prediction
from corte_protocol.types import Float16, UInt8
from corte_teacher.errors import Forbidden


def disclose(
    classes: UInt8, scores: Float16 | None, policy: Disclosure, asked: Disclosure, revision: str
) -> Prediction:
    """The answer at level `asked`, out of a backend's `classes` and `scores` [K, H, W], best first.

    Raises Forbidden when `asked` is beyond `policy`, InvalidValue when the arrays break the invariants
    of a Prediction or hold less than `asked`: then the model is at fault, not the client.
    """
    if not policy.allows(asked):
        raise Forbidden(f"{asked} was asked for, the policy is {policy}")
    k = asked.top_k
    held = None if scores is None or asked.prob_bits == 0 else scores[:k]
    return Prediction(classes[:k], held, revision).narrow(asked)
