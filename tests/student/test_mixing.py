"""Mixing and masking of a batch against slow loops: a pixel and its label always come from one picture."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corte_protocol import VOID
from corte_student.mixing import MixSettings, draw_regions, mask_blocks, paste_pixels, paste_targets
from corte_student.pseudo_labels import PseudoLabels

SEEDS = st.integers(0, 10**6)
CLASSES = st.sampled_from([1, 2, 5, 255])
SHAPE = (4, 9, 12)


def labels_of(classes: int, seed: int) -> torch.Tensor:
    """Answers in blobs: some classes missing, some void, now and then a picture of nothing but void."""
    rng = np.random.default_rng(seed)
    few = rng.choice(classes, min(classes, 4), replace=False)
    labels = np.kron(rng.choice(few, (SHAPE[0], 3, 4)), np.ones((3, 3), int)).astype(np.uint8)
    labels[np.kron(rng.random((SHAPE[0], 3, 4)) < 0.2, np.ones((3, 3), bool))] = VOID
    if seed % 5 == 0:
        labels[seed % SHAPE[0]] = VOID
    return torch.from_numpy(labels)


def coded() -> tuple[torch.Tensor, PseudoLabels]:
    """Pictures, labels, weights and soft targets that each tell the picture and the place they come from."""
    place = torch.arange(SHAPE[0] * SHAPE[1] * SHAPE[2]).reshape(SHAPE)
    pixels = torch.stack([place % 200, place // 200, torch.zeros_like(place)], dim=1).to(torch.uint8)
    soft = torch.stack([place.float(), -place.float()], dim=1)
    return pixels, PseudoLabels(place, place.float() + 0.5, soft)


@given(CLASSES, SEEDS)
@settings(max_examples=60)
def test_class_mixing_equals_a_loop(classes: int, seed: int) -> None:
    """A sample is covered exactly by half of the classes, rounded up, of the answer before it; never by void.

    Every class of a partner has its turn: which half is drawn.
    """
    labels = labels_of(classes, seed)
    regions = draw_regions(labels, MixSettings(classes=1.0), np.random.default_rng(seed))
    assert regions.dtype == torch.bool and regions.shape == labels.shape
    for slot in range(len(labels)):
        partner = labels[slot - 1].tolist()
        present = {label for row in partner for label in row} - {VOID}
        covered = {partner[y][x] for y, x in np.ndindex(*SHAPE[1:]) if bool(regions[slot, y, x])}
        assert covered <= present and len(covered) == (len(present) + 1) // 2
        for y, x in np.ndindex(*SHAPE[1:]):
            assert bool(regions[slot, y, x]) == (partner[y][x] in covered)


def test_every_class_is_mixed_now_and_then() -> None:
    """Over many draws each of four classes covers about half of the time."""
    labels = torch.arange(4, dtype=torch.uint8).reshape(1, 1, 4).repeat(2, 1, 1)
    rng = np.random.default_rng(0)
    draws = torch.stack([draw_regions(labels, MixSettings(classes=1.0), rng) for _ in range(200)])
    share = draws.float().mean(dim=(0, 1, 2))
    assert bool(((share > 0.4) & (share < 0.6)).all())


@given(SEEDS, st.integers(2, 60), st.integers(2, 60))
@settings(max_examples=60)
def test_cut_mix_is_one_rectangle_of_half_the_area(seed: int, height: int, width: int) -> None:
    """Each sample is covered by one full rectangle inside it; its area is half, to a pixel each way."""
    labels = torch.zeros(2, height, width, dtype=torch.uint8)
    regions = draw_regions(labels, MixSettings(cut=1.0), np.random.default_rng(seed))
    for region in regions:
        rows, columns = np.nonzero(region.numpy())
        high, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert high * wide == len(rows)
        assert abs(len(rows) - height * width / 2) <= (height + width) / 2 + 1


@given(CLASSES, SEEDS, st.sampled_from([(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.3, 0.3)]))
@settings(max_examples=60)
def test_pixels_and_labels_never_part(classes: int, seed: int, shares: tuple[float, float]) -> None:
    """Everywhere the pixel, the label, the weight and the soft target are of one picture and one place."""
    labels = labels_of(classes, seed)
    regions = draw_regions(labels, MixSettings(*shares), np.random.default_rng(seed))
    pixels, targets = coded()
    mixed, pasted = paste_pixels(pixels, regions), paste_targets(targets, regions)
    assert pasted.soft is not None
    seen = mixed[:, 0].long() + 200 * mixed[:, 1].long()
    assert torch.equal(seen, pasted.labels)
    assert torch.equal(pasted.weights, seen.float() + 0.5)
    assert torch.equal(pasted.soft, torch.stack([seen.float(), -seen.float()], dim=1))
    for slot, y, x in np.ndindex(*SHAPE):
        source = (slot - 1) % SHAPE[0] if bool(regions[slot, y, x]) else slot
        assert int(seen[slot, y, x]) == (source * SHAPE[1] + y) * SHAPE[2] + x


@given(SEEDS, st.integers(1, 3))
@settings(max_examples=40)
def test_pixels_and_labels_never_part_on_the_sampled_grid(seed: int, stride: int) -> None:
    """Every n-th target, pasted by every n-th pixel of the regions, fits the pasted picture there."""
    labels = labels_of(5, seed)
    regions = draw_regions(labels, MixSettings(classes=0.5, cut=0.5), np.random.default_rng(seed))
    pixels, whole = coded()
    row, column = seed % stride, seed // stride % stride

    def sampled(plane: torch.Tensor) -> torch.Tensor:
        return plane[..., row::stride, column::stride]

    some = paste_targets(PseudoLabels(sampled(whole.labels), sampled(whole.weights)), sampled(regions))
    mixed = sampled(paste_pixels(pixels, regions))
    assert some.soft is None
    assert torch.equal(mixed[:, 0].long() + 200 * mixed[:, 1].long(), some.labels)


def test_shares_are_shares_of_samples() -> None:
    """Of many samples a third is mixed by class, a third cut, a third left as it is."""
    labels = torch.zeros(600, 4, 4, dtype=torch.uint8)
    labels[:, :, 1:] = 1
    regions = draw_regions(labels, MixSettings(classes=1 / 3, cut=1 / 3), np.random.default_rng(0))
    full = torch.stack([labels[0] == 0, labels[0] == 1])
    by_class = torch.stack([(regions == part).all(dim=(1, 2)) for part in full]).any(dim=0)
    nothing = ~regions.any(dim=2).any(dim=1)
    for share in (by_class.float().mean(), nothing.float().mean()):
        assert 0.26 < float(share) < 0.41


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@given(SEEDS, st.integers(1, 7), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.7, 1.0]))
@settings(max_examples=40)
def test_masking_equals_a_loop(
    dtype: torch.dtype, seed: int, block: int, masked: float, ratio: float
) -> None:
    """Whole blocks from the corner on are the fill or untouched, and the numbers drawn say which."""
    how = MixSettings(masked=masked, block=block, ratio=ratio)
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.integers(0, 256, (3, 3, 8, 11))).to(dtype)
    fill = torch.tensor([123.5, 7.0, 250.0]).view(1, 3, 1, 1)
    before = pixels.clone()
    out = mask_blocks(pixels, fill, how, np.random.default_rng(seed))
    assert torch.equal(pixels, before) and out.dtype == dtype
    again = np.random.default_rng(seed)
    for slot in range(3):
        hit = again.random() < masked
        drawn = again.random((-(-8 // block), -(-11 // block))) if hit else None
        for y, x in np.ndindex(8, 11):
            blank = drawn is not None and drawn[y // block, x // block] < ratio
            wanted = fill[0, :, 0, 0].to(dtype) if blank else pixels[slot, :, y, x]
            assert torch.equal(out[slot, :, y, x], wanted)


@given(SEEDS)
@settings(max_examples=20)
def test_the_same_generator_mixes_alike(seed: int) -> None:
    """Everything is drawn from the generator that is given, so a resumed step draws the same."""
    labels, how = labels_of(5, seed), MixSettings(classes=0.4, cut=0.4, masked=0.5, block=3)
    pixels, fill = coded()[0], torch.zeros(1, 3, 1, 1)

    def once() -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng(seed)
        regions = draw_regions(labels, how, rng)
        return regions, mask_blocks(pixels, fill, how, rng)

    assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))


def test_without_shares_nothing_changes() -> None:
    """The default settings mix and mask nothing."""
    labels, rng = labels_of(5, 1), np.random.default_rng(0)
    assert not MixSettings().mixes and MixSettings(cut=0.1).mixes and MixSettings(classes=0.1).mixes
    assert not bool(draw_regions(labels, MixSettings(), rng).any())
    pixels = coded()[0]
    assert torch.equal(mask_blocks(pixels, torch.zeros(1, 3, 1, 1), MixSettings(), rng), pixels)
