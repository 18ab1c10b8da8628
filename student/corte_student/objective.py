"""The training objective: cross-entropy on the strong view against the pseudo-labels of the weak one.

CoRTe's consistent training (arXiv 2402.13122); the normalisation by the sum of weights is this project's.
"""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from corte_protocol import VOID
from corte_student.models import resize_logits
from corte_student.pseudo_labels import PseudoLabels


def weighted_cross_entropy(logits: Tensor, targets: PseudoLabels, stride: int = 1) -> Tensor:
    """Cross-entropy summed with weights over the sum of weights; zero, with a gradient, where none counts.

    `logits` float [B, S, h', w'] at the decoder's stride are brought to the labels' size divided by
    `stride`, and every `stride`-th label is compared. Returns a scalar.
    """
    labels = targets.labels[:, ::stride, ::stride]
    weights = targets.weights[:, ::stride, ::stride]
    scores = resize_logits(logits, (labels.shape[-2], labels.shape[-1]))
    losses = F.cross_entropy(scores, labels, ignore_index=VOID, reduction="none")
    return (losses * weights).sum() / weights.sum().clamp(min=1.0)


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
    return PseudoLabels(targets.labels, targets.weights * by_class)
