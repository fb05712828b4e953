r"""Gradient-trained rivals of an analytic head on the same frozen features, with and without replay.

Every class is a `Learner` of `glocal.supervision.anytime`. n samples of a batch, d features, k classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from glocal.supervision.replay import Memory


class OnlineHead:
    r"""Head trained by gradient steps on each arriving batch (fine-tuning); with a memory, experience replay (ER).

    Args:
        n_features: $d$.
        n_classes: columns to allocate; scores of classes that have not arrived are masked out.
        lr: learning rate.
        n_steps: gradient steps per arriving batch.
        optimizer: `"sgd"` (no momentum) or `"adam"`.
        hidden: width of a hidden ReLU layer; 0 for a linear head, which starts at zero.
        memory_size: places in the replay memory; 0 for none.
        replay_batch: samples replayed in every step.
        is_balanced: class-balanced memory.
        generator: source of the initialisation and the replay, on the CPU.
        device: where the parameters live.

    Raises:
        ValueError: for an unknown optimiser.
    """

    def __init__(
        self,
        n_features: int,
        n_classes: int,
        *,
        lr: float,
        n_steps: int = 1,
        optimizer: str = "sgd",
        hidden: int = 0,
        memory_size: int = 0,
        replay_batch: int = 64,
        is_balanced: bool = False,
        generator: torch.Generator,
        device: str | torch.device = "cpu",
    ) -> None:
        if optimizer not in ("sgd", "adam"):
            raise ValueError(f"optimizer must be 'sgd' or 'adam', got {optimizer!r}")
        self.parameters: list[Tensor] = []
        if hidden:
            weight = (2 * torch.rand(hidden, n_features, generator=generator) - 1) / n_features**0.5
            self.parameters += [weight.to(device), torch.zeros(hidden, device=device)]
        width = hidden or n_features
        self.parameters += [torch.zeros(n_classes, width, device=device), torch.zeros(n_classes, device=device)]
        for parameter in self.parameters:
            parameter.requires_grad_()
        self.optimizer, self.lr, self.n_updates = optimizer, lr, 0
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]  # of Adam
        self.n_steps, self.replay_batch = n_steps, replay_batch
        self.is_seen = torch.zeros(n_classes, dtype=torch.bool, device=device)
        self.memory = Memory(memory_size, is_balanced=is_balanced, generator=generator) if memory_size else None

    def begin_task(self) -> None:
        """Plain replay and fine-tuning ignore task borders."""

    def scores(self, x: Float[Tensor, "n d"], parameters: Sequence[Tensor] | None = None) -> Float[Tensor, "n k"]:
        """Logits of all classes, before masking; `parameters` replaces the present ones."""
        *hidden, weight, bias = parameters or self.parameters
        x = x.float()
        if hidden:
            x = F.linear(x, *hidden).relu()
        return F.linear(x, weight, bias)

    def logits(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Logits in which classes not yet seen are impossible."""
        return self.scores(x).masked_fill(~self.is_seen, -torch.inf)

    def objective(self, x: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """Cross-entropy on the arriving batch and, if there is a memory, on as many replayed samples as set."""
        if self.memory is not None and len(self.memory):
            x_old, y_old = self.memory.sample(self.replay_batch)
            x, labels = torch.cat([x, x_old]), torch.cat([labels, y_old])
        return F.cross_entropy(self.logits(x), labels)

    def update(self, x: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> None:
        """Take the gradient steps of one arriving batch, then offer it to the memory."""
        self.is_seen[labels] = True
        for _ in range(self.n_steps):
            self.descend(torch.autograd.grad(self.objective(x, labels), self.parameters))
        if self.memory is not None:
            self.memory.add(x, labels)

    @torch.no_grad()
    def descend(self, gradients: Sequence[Tensor]) -> None:
        """One step of SGD, or of Adam with its usual constants (0.9, 0.999, 1e-8), written out: it is six lines."""
        self.n_updates += 1
        bias1, bias2 = 1 - 0.9**self.n_updates, 1 - 0.999**self.n_updates
        for parameter, gradient, (mean, square) in zip(self.parameters, gradients, self.moments, strict=True):
            if self.optimizer == "sgd":
                parameter.sub_(gradient, alpha=self.lr)
                continue
            mean.lerp_(gradient, 0.1)
            square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            parameter.addcdiv_(mean, (square / bias2).sqrt_().add_(1e-8), value=-self.lr / bias1)

    @torch.no_grad()
    def predict(self, x: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
        """Most probable class among those seen."""
        return self.logits(x).argmax(1)


class LwF(OnlineHead):
    r"""Learning without forgetting: the head at the start of the task teaches the running one on the new data.

    The objective adds $\lambda T^2\,\mathrm{KL}(p_\mathrm{old} \,\|\, p_\mathrm{new})$ over the old classes, at
    temperature $T = 2$.

    Source: Li and Hoiem, ECCV 2016.
    """

    temperature = 2.0

    def __init__(self, n_features: int, n_classes: int, *, distill_weight: float = 1.0, **settings: Any) -> None:
        super().__init__(n_features, n_classes, **settings)
        self.distill_weight = distill_weight
        self.teacher: list[Tensor] = []
        self.taught = self.is_seen.clone()

    def begin_task(self) -> None:
        """Freeze a copy of the head as teacher of the classes it knows."""
        self.teacher = [parameter.detach().clone() for parameter in self.parameters]
        self.taught = self.is_seen.clone()

    def objective(self, x: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """Cross-entropy on the batch plus distillation of the old classes' probabilities."""
        if int(self.taught.sum()) < 2:
            return super().objective(x, labels)
        scores = self.scores(x)
        loss = F.cross_entropy(scores.masked_fill(~self.is_seen, -torch.inf), labels)
        with torch.no_grad():
            old = F.log_softmax(self.scores(x, self.teacher)[:, self.taught] / self.temperature, dim=1)
        new = F.log_softmax(scores[:, self.taught] / self.temperature, dim=1)
        distill = F.kl_div(new, old, reduction="batchmean", log_target=True)
        return loss + self.distill_weight * self.temperature**2 * distill


class EWC(OnlineHead):
    r"""EWC++: a quadratic spring to the weights at the last task border, stiff where the Fisher information is large.

    The objective adds $\tfrac\lambda2\sum_j F_j(\theta_j - \theta_j^*)^2$ with a running average of the diagonal
    Fisher, $F \leftarrow \alpha F_\mathrm{batch} + (1-\alpha)F$. For a linear softmax head the squared per-sample
    gradients are $(p - y)^2 \otimes \phi^2$, no loop needed; linear heads only.

    Source: Kirkpatrick et al., PNAS 2017; running Fisher of Chaudhry et al., ECCV 2018 (EWC++).
    """

    fisher_rate = 0.1

    def __init__(self, n_features: int, n_classes: int, *, spring: float = 100.0, **settings: Any) -> None:
        if settings.get("hidden"):
            raise ValueError("EWC here has the Fisher information of a linear head: hidden must be 0")
        super().__init__(n_features, n_classes, **settings)
        self.spring = spring
        self.running = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.begin_task()

    def begin_task(self) -> None:
        """Anchor the weights and their Fisher information at the border."""
        self.anchor = [(f.clone(), p.detach().clone()) for f, p in zip(self.running, self.parameters, strict=True)]

    def objective(self, x: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """Cross-entropy plus the springs."""
        pairs = zip(self.anchor, self.parameters, strict=True)
        pull = torch.stack([(f * (p - anchor) ** 2).sum() for (f, anchor), p in pairs]).sum()
        return super().objective(x, labels) + self.spring / 2 * pull

    def update(self, x: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> None:
        """Gradient steps, then the running Fisher information."""
        super().update(x, labels)
        with torch.no_grad():
            slope = self.logits(x).softmax(1) - F.one_hot(labels, len(self.is_seen))
            fisher = [(slope**2).T @ x.float() ** 2 / len(x), (slope**2).mean(0)]
        for running, new in zip(self.running, fisher, strict=True):
            running.lerp_(new, self.fisher_rate)


# Best settings on a tuning stream of `letter` (its own seed, class order and split; 240 samples per class to train,
# 60 held-out training samples to judge by A_AUC). Grid: SGD with lr 0.003 ... 1, Adam with lr 0.001 ... 0.3,
# 1 or 4 steps per batch, replay batch 64 or 192, distillation weight 0.1 ... 3, spring 10 ... 10000, hidden width 512.
TUNED: dict[str, dict[str, Any]] = {
    "fine-tuning": {"optimizer": "adam", "lr": 0.03, "n_steps": 4},
    "LwF": {"optimizer": "adam", "lr": 0.03, "n_steps": 4, "distill_weight": 0.3},
    "EWC++": {"optimizer": "adam", "lr": 0.03, "n_steps": 4, "spring": 1000.0},
    "ER": {"optimizer": "adam", "lr": 0.03, "n_steps": 4, "replay_batch": 192},
    "balanced ER": {"optimizer": "adam", "lr": 0.1, "n_steps": 4, "replay_batch": 192},
    "hidden ER": {"optimizer": "adam", "lr": 0.01, "n_steps": 4, "replay_batch": 192},
}


def gradient_rival(
    name: str,
    n_features: int,
    n_classes: int,
    *,
    memory_size: int = 0,
    hidden: int = 512,
    generator: torch.Generator,
    device: str | torch.device = "cpu",
    **settings: Any,
) -> OnlineHead:
    """Build a gradient head by the name of its family, with its tuned settings.

    Args:
        name: `"fine-tuning"`, `"LwF"`, `"EWC++"`, `"ER"`, `"balanced ER"` or `"hidden ER"` (trains a hidden layer).
        n_features: width of the features.
        n_classes: number of classes to allocate.
        memory_size: places in the memory of the replay heads.
        hidden: width of the hidden layer of `"hidden ER"`.
        generator: on the CPU.
        device: where the head lives.
        settings: override the tuned settings.

    Raises:
        ValueError: for an unknown family, or replay without a memory.
    """
    if name not in TUNED:
        raise ValueError(f"name must be one of {', '.join(TUNED)}, got {name!r}")
    if name.endswith("ER") != (memory_size > 0):
        raise ValueError(f"memory_size must be positive for replay and 0 otherwise, got {memory_size} for {name!r}")
    kind = {"LwF": LwF, "EWC++": EWC}.get(name, OnlineHead)
    merged = TUNED[name] | settings
    if memory_size:
        merged |= {"memory_size": memory_size, "is_balanced": name == "balanced ER"}
    if name == "hidden ER":
        merged["hidden"] = hidden
    return kind(n_features, n_classes, generator=generator, device=device, **merged)
