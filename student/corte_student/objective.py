"""The training objective: cross-entropy on the strong view against the pseudo-labels of the weak one.

CoRTe's consistent training (arXiv 2402.13122); the normalisation by the sum of weights is this project's.
The robust forms are functions of the cross-entropy l = -log p of a pixel's label alone.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from corte_protocol import VOID
from corte_student.models import resize_logits
from corte_student.pseudo_labels import PseudoLabels

Loss = Literal["ce", "sce", "gce"]

SCE_BETA = 0.1
"""The share of the reverse term; with log 0 cut off at -4 as Wang et al. do."""
GCE_Q = 0.7
"""Zhang & Sabuncu's own choice between cross-entropy (0) and mean absolute error (1)."""


def pixel_loss(logits: Tensor, targets: PseudoLabels, loss: Loss = "ce") -> Tensor:
    """Weighted loss summed over the sum of weights: a scalar; zero, with a gradient, where none counts.

    `logits` float [B, S, h', w'] at the decoder's stride are brought to the size of the targets. *ce*:
    cross-entropy. *sce*: plus the reverse cross-entropy (Wang et al., ICCV 2019, arXiv 1908.06112). *gce*:
    generalised cross-entropy (Zhang & Sabuncu, NeurIPS 2018, arXiv 1805.07836). Soft targets take `ce`.
    """
    scores = resize_logits(logits, (targets.labels.shape[-2], targets.labels.shape[-1]))
    if targets.soft is not None:
        losses = -(targets.soft * scores.log_softmax(dim=1)).sum(dim=1)
    else:
        losses = _robust(F.cross_entropy(scores, targets.labels, ignore_index=VOID, reduction="none"), loss)
    return (losses * targets.weights).sum() / targets.weights.sum().clamp(min=1.0)


def _robust(losses: Tensor, loss: Loss) -> Tensor:
    if loss == "ce":
        return losses
    # exp(-l) is the probability of the label; 1 where void, whose weight is 0
    if loss == "sce":
        return losses + SCE_BETA * 4.0 * (1 - torch.exp(-losses))
    # not a power of exp(-l): where that is 0 the gradient would be no number
    return (1 - torch.exp(-GCE_Q * losses)) / GCE_Q


def balanced(targets: PseudoLabels, counts: npt.NDArray[np.int64], exponent: float) -> PseudoLabels:
    """`targets` with weights times frequency ** -exponent of their class, mean one over the classes.

    `counts` int64 [S] are the pixels that the teacher gave each class in the images planned so far, so no
    truth is needed. Exponent 0 changes nothing; 0.25 lets poles count without drowning road. A common
    remedy for rare classes; this project's choice, not CoRTe's.
    """
    if exponent == 0:
        return targets
    rarity = np.maximum(counts, 1).astype(np.float64) ** -exponent
    scale = torch.from_numpy(rarity / rarity[counts > 0].mean() if counts.any() else np.ones_like(rarity))
    by_class = scale.to(targets.weights)[targets.labels.masked_fill(targets.labels == VOID, 0)]
    return PseudoLabels(targets.labels, targets.weights * by_class, targets.soft)
