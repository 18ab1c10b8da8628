"""What every pseudo-labeller guarantees: inherit `LabellerContract` and say which labeller it is about."""

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from corte_protocol import VOID, Disclosure
from corte_student.pseudo_labels import Answers, PseudoLabeller, PseudoLabels
from corte_student.statistics import MarginStatistics

SHAPE = (2, 5, 6)


def maps_of(classes: int, seed: int, shape: tuple[int, ...] = SHAPE) -> tuple[np.ndarray, ...]:
    """Labels, margins and best scores, uint8: ties, empty classes, one class alone, nothing but void."""
    rng = np.random.default_rng(seed)
    few = rng.choice(classes, size=min(classes, 1 + seed % 4), replace=False)
    labels = rng.choice(few, shape).astype(np.uint8)
    labels[rng.random(shape) < rng.choice([0.0, 0.2, 1.0], p=[0.5, 0.4, 0.1])] = VOID
    margin = rng.choice([0, 1, 127, 128, 255] if seed % 2 else np.arange(256), shape).astype(np.int64)
    second = np.floor(rng.random(shape) * (255 - margin) / 2).astype(np.int64)
    return labels, margin.astype(np.uint8), (second + margin).astype(np.uint8)


def scores_of(classes: int, seed: int, maps: tuple[np.ndarray, ...]) -> np.ndarray:
    """Scores [B, S, h, w] of those maps: the label's, one runner-up's, a void pixel's at random or none."""
    labels, margin, best = maps
    rng = np.random.default_rng([seed, 1])
    scores = np.zeros((labels.shape[0], classes, *labels.shape[1:]), np.uint8)
    for place in np.ndindex(*labels.shape):
        image, y, x = place
        label = int(labels[place])
        if label == VOID:
            scores[image, rng.integers(classes), y, x] = rng.choice([0, 40])
            continue
        other = (label + int(rng.integers(1, classes))) % classes
        scores[image, label, y, x] = best[place]
        scores[image, other, y, x] = int(best[place]) - int(margin[place])
    return scores


def answers_of(
    classes: int, seed: int, *, scores: bool = False, tests: str = "margin", scored: bool = True
) -> Answers:
    """Random answers of one batch; the statistics cover the batch and one image more."""
    maps = maps_of(classes, seed)
    labels, margin, best = maps
    tested = margin if tests == "margin" else best
    if not scored:
        tested = np.zeros_like(labels)
    more = maps_of(classes, seed + 1, (3, 4))
    statistics = MarginStatistics.of(labels, tested, classes) + MarginStatistics.of(
        more[0], more[1 if tests == "margin" else 2], classes
    )
    return Answers(
        torch.from_numpy(labels),
        torch.from_numpy(margin) if scored else None,
        torch.from_numpy(best) if scored else None,
        statistics,
        torch.from_numpy(scores_of(classes, seed, maps)) if scores else None,
    )


def answers_for(labeller: PseudoLabeller, classes: int, seed: int) -> Answers:
    """Answers with no more in them than `labeller` says it needs."""
    return answers_of(
        classes,
        seed,
        scores=labeller.wants_scores,
        tests=labeller.tests,
        scored=labeller.needs.prob_bits > 0,
    )


def logits_of(classes: int, seed: int, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    """Random logits, with ties for odd seeds."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(shape[0], classes, *shape[1:])) * 3
    return torch.from_numpy(np.round(values) if seed % 2 else values).float()


def same(a: PseudoLabels, b: PseudoLabels) -> bool:
    """Whether two targets are equal bit for bit."""
    if (a.soft is None) != (b.soft is None) or (a.soft is not None and not torch.equal(a.soft, _soft(b))):
        return False
    return torch.equal(a.labels, b.labels) and torch.equal(a.weights, b.weights)


def _soft(targets: PseudoLabels) -> Tensor:
    assert targets.soft is not None
    return targets.soft


class LabellerContract:
    """What every labeller guarantees; each inherits it."""

    def make(self, classes: int) -> PseudoLabeller:
        """The labeller under test, always the same one."""
        raise NotImplementedError

    def ask(self, labeller: PseudoLabeller, classes: int, seed: int, progress: float) -> PseudoLabels:
        """Targets as a training step asks for them: logits only where they are wanted."""
        logits = logits_of(classes, seed + 1) if labeller.wants_ema(progress) else None
        return labeller(answers_for(labeller, classes, seed), logits, progress)

    def test_targets_are_legal(self) -> None:
        """Labels are classes or void, weights finite, in [0, 1] and zero wherever void; soft ones sum to 1.

        With 2, 3 and 255 classes, all void, one class alone, and ties among the answers.
        """
        for classes in (2, 3, 255):
            labeller = self.make(classes)
            for seed in range(12):
                answers = answers_for(labeller, classes, seed)
                targets = self.ask(labeller, classes, seed, (seed % 4) / 3)
                assert targets.labels.dtype == torch.int64 and targets.labels.shape == answers.labels.shape
                assert targets.weights.dtype == torch.float32
                assert targets.weights.shape == answers.labels.shape
                void = targets.labels == VOID
                assert bool((((targets.labels >= 0) & (targets.labels < classes)) | void).all())
                assert bool(((targets.weights >= 0) & (targets.weights <= 1)).all())
                assert bool((targets.weights[void] == 0).all())
                if targets.soft is not None:
                    self.check_soft(targets, targets.soft)

    def check_soft(self, targets: PseudoLabels, soft: Tensor) -> None:
        """A distribution at every pixel, whose arg-max is the label."""
        assert soft.dtype == torch.float32 and bool((soft >= 0).all())
        torch.testing.assert_close(soft.sum(dim=1), torch.ones_like(targets.weights))
        learned = targets.labels != VOID
        assert torch.equal(soft.argmax(dim=1)[learned], targets.labels[learned])

    def test_a_void_answer_stays_void(self) -> None:
        """What the class map calls void is never learned from, whatever the ema says of it."""
        voids = 0
        for seed in range(40):
            labeller = self.make(3)
            void = answers_for(labeller, 3, seed).labels == VOID
            voids += int(void.sum())
            assert bool((self.ask(labeller, 3, seed, 1.0).labels[void] == VOID).all())
        assert voids > 0

    def test_it_says_what_it_takes(self) -> None:
        """Its needs, the plane it tests and whether it wants scores are of the right kind."""
        labeller = self.make(4)
        assert isinstance(labeller.needs, Disclosure)
        assert labeller.tests in ("margin", "confidence")
        assert isinstance(labeller.surrogate, bool) and isinstance(labeller.wants_scores, bool)
        assert all(isinstance(labeller.wants_ema(p), bool) for p in (0.0, 0.5, 1.0))

    def test_a_restored_labeller_goes_on_as_the_first(self) -> None:
        """State saved as a checkpoint saves it, and restored, gives the same targets from then on."""
        for progress in (0.0, 0.5, 1.0):
            first, second = self.make(5), self.make(5)
            for seed in (1, 2, 5):
                self.ask(first, 5, seed, progress)
            self.ask(second, 5, 7, progress)  # it has a past of its own, which must not count
            second.restore(load(save(first.state())))
            for seed in (3, 4):
                assert same(self.ask(first, 5, seed, progress), self.ask(second, 5, seed, progress))

    def test_a_saved_state_does_not_change_afterwards(self) -> None:
        """A checkpoint is written while the run goes on."""
        labeller = self.make(5)
        self.ask(labeller, 5, 1, 1.0)
        state = labeller.state()
        before = {name: value.clone() for name, value in state.items()}
        self.ask(labeller, 5, 2, 1.0)
        assert all(torch.equal(state[name], value) for name, value in before.items())

    def test_logits_that_are_not_wanted_change_nothing(self) -> None:
        """Where `wants_ema` says no, the targets are the same with logits and without."""
        for progress in (0.0, 0.3, 1.0):
            if self.make(4).wants_ema(progress):
                continue
            for seed in range(6):
                answers = answers_for(self.make(4), 4, seed)
                without = self.make(4)(answers, None, progress)
                assert same(without, self.make(4)(answers, logits_of(4, seed), progress))

    def test_the_answers_are_left_alone(self) -> None:
        """A labeller never writes into what it was given."""
        labeller = self.make(4)
        for seed in range(6):
            answers, untouched = answers_for(labeller, 4, seed), answers_for(labeller, 4, seed)
            logits = logits_of(4, seed)
            labeller(answers, logits if labeller.wants_ema(1.0) else None, 1.0)
            assert torch.equal(logits, logits_of(4, seed))
            assert np.array_equal(answers.statistics.histogram, untouched.statistics.histogram)
            for name in ("labels", "margin", "confidence", "scores"):
                now, before = getattr(answers, name), getattr(untouched, name)
                assert (now is None and before is None) or torch.equal(now, before)
