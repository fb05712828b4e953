r"""Continual learners with a linear head per task on the same network: what kernel heads are compared with.

r networks (rivals times s seeds, rival by rival), b samples of a batch, d values, t tasks, k classes of a task.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call, grad, vmap

from glocal.nn.stack import NetworkStack, Weights, predict
from glocal.nn.training import Recipe, train
from glocal.supervision.gkcl_data import Task
from glocal.supervision.gkcl_generator import Trace

FAMILIES = {
    "current": ("fine-tuning", "ewc"),
    "replay": ("experience replay", "generative replay"),
    "joint": ("joint",),
}
Batch = tuple[Float[Tensor, "s b d"], Int[Tensor, "s b"], Int[Tensor, "s b"]]  # samples, labels, tasks


@dataclass(frozen=True)
class Rival:
    """A method with task heads.

    Args:
        method: `fine-tuning`, `ewc`, `experience replay` (real samples), `generative replay` (samples of the same
            generator, replayed through the classifier) or `joint` (all tasks at once).
        lr_factor: times the learning rate of the recipe.
        weight: of the quadratic penalty of `ewc`.

    Raises:
        ValueError: for an unknown method.
    """

    method: str
    lr_factor: float = 1.0
    weight: float = 0.0

    def __post_init__(self) -> None:
        known = [method for family in FAMILIES.values() for method in family]
        if self.method not in known:
            raise ValueError(f"method must be one of {', '.join(known)}, got {self.method!r}")

    @property
    def family(self) -> str:
        """Which batches the method reads."""
        return next(family for family, methods in FAMILIES.items() if self.method in methods)


class Rivals:
    """Rivals of one family side by side.

    Args:
        rivals: methods of one family of `FAMILIES`.
        stack: networks whose heads have tasks times classes outputs; rivals times seeds.
        n_seeds: seeds.
        n_tasks: tasks.

    Raises:
        ValueError: for methods of several families.
    """

    def __init__(self, rivals: Sequence[Rival], stack: NetworkStack, n_seeds: int, n_tasks: int) -> None:
        if len({rival.family for rival in rivals}) != 1:
            raise ValueError("rivals that train together must be of one family: make one group per family")
        self.rivals, self.stack, self.n_seeds, self.n_tasks = list(rivals), stack, n_seeds, n_tasks
        self.family = rivals[0].family
        example = stack.parameters()[0]
        weigh = lambda values: torch.tensor(values, device=example.device).repeat_interleave(n_seeds)  # noqa: E731
        self.lr_factors = weigh([rival.lr_factor for rival in rivals])
        self.weights = weigh([rival.weight if rival.method == "ewc" else 0.0 for rival in rivals])
        self.importance: Weights = {name: torch.zeros_like(w) for name, w in stack.state().items()}
        self.anchor = stack.state()

    def tile(self, x: Tensor) -> Tensor:
        """Values of the seeds, repeated for every rival."""
        return x.repeat(len(self.rivals), *[1] * (x.ndim - 1))

    def task_logits(self, x: Float[Tensor, "r n d"], tasks: Int[Tensor, "r n"]) -> Float[Tensor, "r n k"]:
        """Outputs of the head of each sample's task: classes of other tasks are masked."""
        return head_of(self.stack(x), tasks, self.n_tasks)

    def losses(self, x: Float[Tensor, "r n d"], y: Int[Tensor, "r n"], tasks: Int[Tensor, "r n"]) -> Tensor:
        """Cross-entropy of every network."""
        logits = self.task_logits(x, tasks)
        return F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").reshape(y.shape).mean(1)

    def penalty(self, lr: float) -> Float[Tensor, " r"]:
        r"""$\frac w2\sum_i F_i(\theta_i - \theta_i^*)^2$, with $wF_i$ cut at $0.1/\eta$ lest steps overshoot."""
        total = torch.zeros(len(self.stack), device=self.weights.device)
        limit = 0.1 / (lr * self.lr_factors)
        for name, value in self.stack.weights.items():
            shape = (-1, *[1] * (value.ndim - 1))
            strength = torch.minimum(self.weights.reshape(shape) * self.importance[name], limit.reshape(shape))
            total = total + 0.5 * (strength * (value - self.anchor[name]).square()).flatten(1).sum(1)
        return total

    def train_task(
        self, t: int, current: Callable[[int], Batch], second: Callable[[str, int], Batch] | None, recipe: Recipe
    ) -> None:
        """Train on task t.

        Args:
            t: number of the task.
            current: batch of a step; of the current task, or of all tasks for joint training.
            second: replayed batch of a method and a step, of the same size.
            recipe: optimiser.
        """

        def loss_at(step: int) -> Float[Tensor, " r"]:
            parts = [tuple(self.tile(part) for part in current(step))]
            if second is not None:
                replayed = [second(rival.method, step) for rival in self.rivals]
                parts.append(tuple(torch.cat(column) for column in zip(*replayed, strict=True)))
            x, y, tasks = (torch.cat(column, 1) for column in zip(*parts, strict=True))
            loss = self.losses(x, y, tasks)
            if t and bool((self.weights > 0).any()):
                loss = loss + self.penalty(recipe.lr)
            return self.lr_factors * loss

        train(self.stack.parameters(), loss_at, recipe)

    def consolidate(self, t: int, task: Task, n: int) -> None:
        """Add the Fisher information of n samples of a finished task, and anchor the weights where they are."""
        if not bool((self.weights > 0).any()):
            return
        x, y = self.tile(task.x[:, :n]), self.tile(task.y[:, :n])
        for name, value in squared_gradients(self.stack, x, y, t, self.n_tasks).items():
            self.importance[name] += value
        self.anchor = self.stack.state()

    @torch.no_grad()
    def accuracy(self, t: int, x: Float[Tensor, "s n d"], y: Int[Tensor, "s n"]) -> Float[Tensor, " r"]:
        """Accuracy of the heads of task t."""
        own, labels = self.tile(x), self.tile(y)
        logits = head_of(predict(self.stack, own, batch_size=1024), torch.full_like(labels, t), self.n_tasks)
        return (logits.argmax(-1) == labels).float().mean(1)


def head_of(outputs: Float[Tensor, "r n tk"], tasks: Int[Tensor, "r n"], n_tasks: int) -> Float[Tensor, "r n k"]:
    """The outputs that belong to each sample's task."""
    heads = outputs.unflatten(-1, (n_tasks, -1))
    index = tasks[..., None, None].expand(*tasks.shape, 1, heads.shape[-1])
    return heads.gather(2, index).squeeze(2)


def squared_gradients(
    stack: NetworkStack, x: Float[Tensor, "r n d"], y: Int[Tensor, "r n"], t: int, n_tasks: int
) -> Weights:
    """Mean squared gradient of the log likelihood of single samples: the diagonal empirical Fisher information."""

    def loss(weights: Weights, sample: Tensor, label: Tensor) -> Tensor:
        outputs = functional_call(stack.network, weights, (sample[None],))
        return F.cross_entropy(outputs.unflatten(-1, (n_tasks, -1))[:, t], label[None])

    found = []
    for r in range(len(stack)):
        weights = {name: value[r].detach() for name, value in stack.weights.items()}
        gradients = vmap(grad(loss), in_dims=(None, 0, 0), chunk_size=32)(weights, x[r], y[r])
        found.append({name: value.square().mean(0) for name, value in gradients.items()})
    return {name: torch.stack([each[name] for each in found]) for name in found[0]}


def replay_batches(
    trace: Trace, coresets: Sequence[Float[Tensor, "s k m d"]], batch_size: int, *, generator: torch.Generator
) -> Callable[[str, int], Batch]:
    """Second batches: samples of earlier tasks' coresets, or those that the generator replayed to itself.

    Args:
        trace: of the generator's training on the current task.
        coresets: of the earlier tasks.
        batch_size: b.
        generator: draws from the coresets.
    """
    s, k, m, d = coresets[0].shape
    memory = torch.stack(list(coresets), 1).reshape(s, -1, d)
    rows = torch.arange(s, device=memory.device)[:, None]

    def second(method: str, step: int) -> Batch:
        if method == "experience replay":
            shape = (s, batch_size)
            index = torch.randint(memory.shape[1], shape, generator=generator, device=memory.device)
            return memory[rows, index], index // m % k, index // (m * k)
        codes = trace.codes[step][:, :batch_size]
        return trace.replayed[step][:, :batch_size], codes % k, codes // k

    return second
