"""What torch backends share: device and precision, and the way from a network's logits to K planes.

Strategy: everything between the prepared pixels and the K planes stays on the torch device. The network runs
in the precision that the card names (torch.autocast); resize, softmax and the K best are always float32.

What precision costs, in labels that differ from float32's: float16 0.01 % for the street model, 0.12 % for a
mobilenetv2 under a linear head on CamVid; bfloat16 0.06 % on pictures like those it was trained on, 0.29 % on
others, 1.6 % for that mobilenetv2. So float16, where the GPU has it, before bfloat16; neither where labels
must be those of float32. On a CPU without float16 units that precision takes 7 to 40 times as long.

Legend: N images, C classes of the model, A answered classes (after groups), K disclosed ones, H W the sent
size.
"""

import re
import traceback
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional

from corte_protocol import Disclosure
from corte_protocol.types import Float16, UInt8
from corte_teacher.backends.prepare import Prepared, Ready, prepare, prepared
from corte_teacher.card import Card
from corte_teacher.errors import BackendError, OutOfMemory, StartError

_FEW: Final = 4  # up to here repeated arg-max beats a stable sort of all classes
_FAR: Final = 1e30  # an infinite logit would turn into NaN between two pixels
# torch's CPU allocator, C++, and CUDA's libraries; CUDA's own allocator raises a class of its own
_NO_MEMORY: Final = re.compile(
    "(?i)can't allocate memory|not enough memory|bad.alloc|out of memory|alloc_failed"
)
_LOW: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Network(NamedTuple):
    """A loaded network: float32 [N, 3, h, w] on `device` to logits [N, C, h', w'].

    `batches` is false where it takes one image only.
    """

    forward: Callable[[Tensor], Tensor]
    device: torch.device
    batches: bool = True


class TorchBackend:
    """A network behind its ceiling."""

    def __init__(self, network: Network, card: Card, ceiling: Disclosure) -> None:
        self.batches = network.batches
        self._network = network
        self._card = card
        self._ceiling = ceiling
        self._low = _LOW.get(card.model.precision) if card.model else None

    def prepare(self, image: Image) -> Prepared:
        """See `PreparingBackend.prepare`."""
        return prepare(self._card.input, image)

    def predict(self, pixels: Ready) -> tuple[UInt8, Float16 | None]:
        """See `Backend.predict`. Raises OutOfMemory when there is too little; the network lives on."""
        return self.predict_many([pixels])[0]

    def predict_many(self, pixels: Sequence[Ready]) -> list[tuple[UInt8, Float16 | None]]:
        """What `predict` gives for each image, all of one size, in one forward. Raises OutOfMemory."""
        try:
            return self._run(prepared(self._card.input, pixels))
        except (RuntimeError, MemoryError) as exc:  # torch.OutOfMemoryError is a RuntimeError
            if not (isinstance(exc, torch.OutOfMemoryError | MemoryError) or _NO_MEMORY.search(str(exc))):
                raise
            traceback.clear_frames(exc.__traceback__)  # the maps live in them, and would stay in CUDA's cache
            if self._network.device.type == "cuda":
                torch.cuda.empty_cache()
            raise OutOfMemory(f"no memory in the model: {exc}") from exc

    @torch.inference_mode()
    def _run(self, images: Sequence[Prepared]) -> list[tuple[UInt8, Float16 | None]]:
        _, size, crop = images[0]
        x = torch.from_numpy(np.concatenate([image.array for image in images])).to(self._network.device)
        with torch.autocast(x.device.type, self._low, enabled=self._low is not None):
            logits = self._network.forward(x)
        due = (len(images), len(self._card.classes))
        if logits.ndim != 4 or logits.shape[:2] != due:
            raise BackendError(f"the model answers {list(logits.shape)}, due are {[*due, 'h', 'w']}")
        maps = logits.to(torch.float32).clamp(-_FAR, _FAR)
        maps = functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        classes, scores = _planes(maps[:, :, : crop[0], : crop[1]], self._card, self._ceiling)
        ids = classes.to(torch.uint8).cpu().numpy()
        if scores is None:
            return [(one, None) for one in ids]
        return list(zip(ids, scores.to(torch.float16).cpu().numpy(), strict=True))


def choose_device(card: Card, threads: int) -> torch.device:
    """CUDA where there is one, else the CPU with so many threads (0: all cores).

    "float32" is that on CUDA too: torch would run convolutions in TF32, with 10 bits of mantissa.
    Raises StartError where the card does not describe a network of torch's kind.
    """
    if card.output.kind != "logits" or card.output.layout == "nhwc":
        raise StartError("torch backends take a model that gives logits nchw: correct [output] in the card")
    if card.input.layout != "nchw" or card.input.dtype != "float32":
        raise StartError("torch backends give the model float32 nchw: correct [input] in the card")
    if threads:
        torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def first_line(exc: BaseException) -> str:
    """A foreign error as one line: torch's go on for pages."""
    return next(iter(str(exc).splitlines()), type(exc).__name__)


def _planes(maps: Tensor, card: Card, ceiling: Disclosure) -> tuple[Tensor, Tensor | None]:
    """Logits [N, C, H, W] to the K best ids and, where disclosed, their probabilities, both [N, K, H, W].

    Without groups logits are ordered as they are: exp is monotone, and would make ties. With groups
    exp(x - max) is added per group. Spoils `maps`.
    """
    if not card.groups and not ceiling.prob_bits:
        return _best(maps, ceiling.top_k)[1], None
    peak = maps.amax(1, keepdim=True)
    powers = (maps - peak).exp_()
    total = powers.sum(1, keepdim=True)
    if card.groups:
        merged = [powers[:, list(members)].sum(1) for _, _, members in card.outputs]
        values, ids = _best(torch.stack(merged, 1), ceiling.top_k)
    else:
        del powers
        values, ids = _best(maps, ceiling.top_k)
        values = (values - peak).exp_()
    return ids, values / total if ceiling.prob_bits else None


def _best(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest over axis 1 of [N, A, H, W] and their ids, descending, ties to the lower id. Spoils x.

    torch.topk leaves the order of ties open; arg-max and the stable sort do not.
    """
    if k > _FEW:
        values, ids = torch.sort(x, dim=1, descending=True, stable=True)
        return values[:, :k], ids[:, :k]
    taken: list[tuple[Tensor, Tensor]] = []
    for _ in range(k):
        if taken:
            x.scatter_(1, taken[-1][1], -torch.inf)
        taken.append(x.max(dim=1, keepdim=True))
    return torch.cat([v for v, _ in taken], 1), torch.cat([i for _, i in taken], 1)
