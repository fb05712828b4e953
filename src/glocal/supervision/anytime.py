r"""Anytime evaluation of continual learners: the interface of a learner, the loop, and the metrics.

A learner sees a stream batch by batch, once, and may be asked for predictions at any moment. Shared by the chapters on
continual learning; n samples, k classes.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glocal.supervision.continual import Stream


@runtime_checkable
class Learner(Protocol):
    """What every continual learner can do. None is told the number of tasks or the classes to come."""

    def begin_task(self) -> None:
        """Called before the first batch of a task; task-free learners ignore it."""

    def update(self, x: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> None:
        """Learn from one batch, which is never shown again."""

    def predict(self, x: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
        """Class of each row of `x`, among the classes seen so far."""


@dataclass(frozen=True)
class AnytimeRecord:
    """What was measured along a stream, at `points` moments.

    Args:
        n_seen: number of samples learnt at each point.
        is_task_end: whether a task ended there.
        class_accuracy: test accuracy of each class, as a fraction; classes not yet seen score 0.
        is_seen: which classes had arrived by then.
        test_counts: test samples of each class.
    """

    n_seen: Int[Tensor, " points"]
    is_task_end: Bool[Tensor, " points"]
    class_accuracy: Float[Tensor, "points k"]
    is_seen: Bool[Tensor, "points k"]
    test_counts: Int[Tensor, " k"]

    @property
    def accuracy(self) -> Float[Tensor, " points"]:
        """Accuracy on the test samples of the classes seen so far; its denominator grows along the stream."""
        weight = self.is_seen * self.test_counts
        return (self.class_accuracy * weight).sum(1) / weight.sum(1)

    @property
    def accuracy_all(self) -> Float[Tensor, " points"]:
        """Accuracy on the whole test set, with classes not yet seen counted as errors."""
        weight = self.test_counts / self.test_counts.sum()
        return (self.class_accuracy * weight).sum(1)

    @property
    def macro_accuracy(self) -> Float[Tensor, " points"]:
        """Mean of the accuracies of the classes seen so far: every class counts the same."""
        return (self.class_accuracy * self.is_seen).sum(1) / self.is_seen.sum(1)

    @property
    def a_auc(self) -> float:
        r"""$A_\mathrm{AUC}$: mean over the samples of the accuracy at the next evaluation (anytime inference).

        Source: Koh et al., "Online continual learning on class incremental blurry task configuration with anytime
        inference", ICLR 2022, Section 3.2 (rectangle rule, divided by the length of the stream).
        """
        width = torch.diff(self.n_seen, prepend=self.n_seen.new_zeros(1))
        return float((self.accuracy * width).sum() / width.sum())

    @property
    def a_avg(self) -> float:
        r"""$A_\mathrm{Avg}$: mean accuracy over the ends of the tasks."""
        return float(self.accuracy[self.is_task_end].mean())

    @property
    def a_last(self) -> float:
        r"""$A_\mathrm{Last}$: accuracy at the end of the stream."""
        return float(self.accuracy[-1])

    @property
    def forgetting(self) -> Float[Tensor, " k"]:
        """Forgetting of each class: its best accuracy along the stream minus its last one, as a fraction."""
        return self.class_accuracy.max(0).values - self.class_accuracy[-1]


def run_stream(
    learner: Learner,
    stream: Stream,
    train: tuple[Float[Tensor, "n d"], Int[Tensor, " n"]],
    test: tuple[Float[Tensor, "m d"], Int[Tensor, " m"]],
    *,
    batch_size: int = 64,
    eval_every: int = 500,
    max_batches: int | None = None,
) -> AnytimeRecord:
    """Feed a stream to a learner and measure it along the way: at the end of each task and every so many samples.

    Args:
        learner: any `Learner`; it is changed in place.
        stream: order of arrival of the training set.
        train: features and labels the stream refers to.
        test: features and labels for the evaluations.
        batch_size: samples per update.
        eval_every: samples between two evaluations.
        max_batches: stop after so many batches (rehearsals).

    Raises:
        ValueError: for an empty stream.
    """
    if len(stream) == 0:
        raise ValueError("run_stream needs a stream with at least one sample, got an empty one")
    (x, labels), (x_test, y_test) = train, test
    k = max(len(stream.home), int(y_test.max()) + 1)
    counts = torch.bincount(y_test, minlength=k)
    batches = list(stream.batches(batch_size))[:max_batches]
    seen = torch.zeros(k, dtype=torch.bool, device=labels.device)
    points, n_seen, last_eval = [], 0, 0
    for position, (task, index) in enumerate(batches):
        if position == 0 or batches[position - 1][0] != task:
            learner.begin_task()
        index = index.to(labels.device)
        learner.update(x[index], labels[index])
        seen[labels[index]] = True
        n_seen += len(index)
        is_end = position + 1 == len(batches) or batches[position + 1][0] != task
        if is_end or n_seen - last_eval >= eval_every:
            hits = (learner.predict(x_test) == y_test).double()
            correct = torch.zeros(k, dtype=torch.float64, device=hits.device).index_add_(0, y_test, hits)
            points.append((n_seen, is_end, correct / counts.clamp(min=1), seen.clone()))
            last_eval = n_seen
    at, ends, accuracies, seens = zip(*points, strict=True)
    return AnytimeRecord(
        torch.tensor(at),
        torch.tensor(ends),
        torch.stack(accuracies).cpu(),
        torch.stack(seens).cpu(),
        counts.cpu(),
    )
