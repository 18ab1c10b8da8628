"""The training objective: cross-entropy on the strong view against the pseudo-labels of the weak one.

CoRTe's consistent training (arXiv 2402.13122); the normalisation by the sum of weights is this project's.
"""

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
