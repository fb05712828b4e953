r"""Training with a fixed budget of steps: the same number of updates and the same schedule for every method.

A budget in steps, not in epochs, is what makes methods comparable that see different amounts of data: a subset, a
re-sampled stream, pairs of views. s networks, b examples per batch.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from glocal.nn.stack import NetworkStack

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "cosine", "steps")


@dataclass(frozen=True)
class Recipe:
    r"""How to train: optimiser, schedule and number of steps.

    Args:
        n_steps: updates.
        lr: peak learning rate.
        batch_size: examples per update, for callers that draw batches.
        optimizer: `sgd` (Nesterov momentum), `adam` or `adamw`.
        momentum: of `sgd`; 0 is plain gradient descent.
        weight_decay: L2 penalty (`sgd`, `adam`) or decoupled decay (`adamw`).
        schedule: `constant`, `cosine` to zero, or `steps`: times `decay` at each of `milestones`.
        milestones: fractions of `n_steps`.
        decay: factor at each milestone.

    Raises:
        ValueError: for an unknown optimiser or schedule, or a number out of range.
    """

    n_steps: int
    lr: float
    batch_size: int = 128
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "cosine"
    milestones: tuple[float, ...] = (0.3, 0.6, 0.8)
    decay: float = 0.2

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if self.n_steps < 1 or self.batch_size < 1 or self.lr <= 0:
            raise ValueError(
                f"n_steps, batch_size and lr must be positive, got {self.n_steps}, {self.batch_size} and {self.lr}"
            )

    def lr_at(self, step: int) -> float:
        """Learning rate of update number `step`, counted from 0."""
        progress = step / self.n_steps
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * progress))
        if self.schedule == "steps":
            return self.lr * self.decay ** sum(progress >= milestone for milestone in self.milestones)
        return self.lr

    def make_optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """The optimiser, in its fused version."""
        parameters = list(parameters)
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters,
                lr=self.lr,
                momentum=self.momentum,
                nesterov=self.momentum > 0,
                weight_decay=self.weight_decay,
                fused=True,
            )
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, lr=self.lr, weight_decay=self.weight_decay, fused=True)


def train(
    parameters: Iterable[Tensor],
    loss_at: Callable[[int], Float[Tensor, ""] | Float[Tensor, " s"]],
    recipe: Recipe,
    *,
    after_step: Callable[[int], None] | None = None,
) -> Float[Tensor, "n_steps ..."]:
    """Minimise a loss for `recipe.n_steps` updates.

    Args:
        parameters: what to train.
        loss_at: draws the batch of an update, counted from 0, and returns its loss: a scalar, or one loss for each
            network of a stack; their sum is differentiated, so that networks stay independent.
        recipe: optimiser and schedule; its batch size is not used here.
        after_step: called after each update with its number: evaluations, checkpoints, projections.

    Returns:
        The loss before each update.

    Raises:
        FloatingPointError: if a loss is not finite after the last update.
    """
    optimizer = recipe.make_optimizer(parameters)
    losses = []
    for step in range(recipe.n_steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(step)
        loss = loss_at(step)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        losses.append(loss.detach())
        if after_step is not None:
            after_step(step)
    history = torch.stack(losses)
    if not bool(history.isfinite().all()):
        step = int((~history.reshape(len(history), -1).isfinite().all(1)).nonzero()[0, 0])
        raise FloatingPointError(f"the loss is not finite from step {step} on: lower the learning rate ({recipe.lr})")
    return history


def minibatches(
    subsets: Sequence[Int[Tensor, " _"]],
    batch_size: int,
    n_steps: int,
    *,
    generators: Sequence[torch.Generator],
) -> Int[Tensor, "n_steps s b"]:
    """Indices of the batches of a whole training, for each network from its own subset, whatever the subset's size.

    A subset is gone through in random order again and again; a batch may straddle two passes, so that all batches
    have the same size.

    Args:
        subsets: indices of the training examples of each of the s networks.
        batch_size: examples per batch b.
        n_steps: updates.
        generators: one per network, or a single one for all.

    Raises:
        ValueError: for an empty subset, or a number of generators that does not fit.
    """
    if len(generators) == 1:
        generators = list(generators) * len(subsets)
    if len(generators) != len(subsets):
        raise ValueError(f"one generator per subset, got {len(generators)} for {len(subsets)}")
    wanted = n_steps * batch_size
    rows = []
    for subset, generator in zip(subsets, generators, strict=True):
        if len(subset) == 0:
            raise ValueError("every subset must hold at least one example, got an empty one")
        passes = [
            torch.randperm(len(subset), generator=generator, device=generator.device)
            for _ in range(math.ceil(wanted / len(subset)))
        ]
        rows.append(subset[torch.cat(passes)[:wanted].to(subset.device)].reshape(n_steps, batch_size))
    return torch.stack(rows, dim=1)


def fit_classifiers(
    stack: NetworkStack,
    x: Float[Tensor, "n ..."],
    labels: Int[Tensor, " n"] | Int[Tensor, "s n"],
    subsets: Sequence[Int[Tensor, " _"]],
    recipe: Recipe,
    *,
    generators: Sequence[torch.Generator],
    after_step: Callable[[int], None] | None = None,
) -> Float[Tensor, "n_steps s"]:
    """Train every network of a stack with cross-entropy on its own subset of one data set, in place.

    Args:
        stack: the networks.
        x: all examples.
        labels: their classes; or [s, n] if the networks see different labels.
        subsets: indices of the training examples of each network.
        recipe: budget and optimiser.
        generators: order of the data, one per network or one for all.
        after_step: see `train`.

    Returns:
        Training loss of each network before each update.
    """
    batches = minibatches(subsets, recipe.batch_size, recipe.n_steps, generators=generators)

    def loss_at(step: int) -> Float[Tensor, " s"]:
        index = batches[step]
        logits = stack(x[index])
        targets = labels[index] if labels.ndim == 1 else labels.gather(1, index)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return losses.reshape(index.shape).mean(1)

    return train(stack.parameters(), loss_at, recipe, after_step=after_step)
