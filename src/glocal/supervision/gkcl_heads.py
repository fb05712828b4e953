r"""Kernel continual learning: a shared network trained through the kernel ridge head of one task after another.

The same code trains the version with a coreset of real samples (KCL) and the one with generated supports (GKCL).
Several learners, each for all seeds, lie side by side.

r networks (learners times s seeds, learner by learner), n samples, d values, f features, k classes, m samples a class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from glocal.nn.stack import NetworkStack, predict
from glocal.nn.training import Recipe, train
from glocal.supervision.gkcl import (
    KERNELS,
    VARIATIONAL,
    fourier_features,
    gaussian_kl,
    krr_logits,
    linear_kernel,
    new_scalars,
)
from glocal.supervision.gkcl_data import Task
from glocal.supervision.gkcl_generator import Trace

SUPPORTS = ("generated", "real", "fresh", "finished")


@dataclass(frozen=True)
class Learner:
    """A way to learn with kernels.

    Args:
        kernel: a name of `gkcl.KERNELS`, or `vrf`: random features with a learnt law.
        support: `generated` (GKCL) or `real` (KCL); two controls train with other supports: `fresh` draws real samples
            anew at every step, as a perfect generator would, and `finished` draws from the generator that has learnt
            the whole task. Evaluations then use the coreset, or generated samples.
        variant: which variant of the generator.
        lr_factor: times the learning rate of the recipe.
        learns_ridge: whether the ridge is trained; else it keeps its start value.

    Raises:
        ValueError: for an unknown kernel or support.
    """

    kernel: str = "linear"
    support: str = "generated"
    variant: int = 0
    lr_factor: float = 1.0
    learns_ridge: bool = True

    def __post_init__(self) -> None:
        if self.kernel not in (*KERNELS, VARIATIONAL):
            raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, {VARIATIONAL}, got {self.kernel!r}")
        if self.support not in SUPPORTS:
            raise ValueError(f"support must be one of {', '.join(SUPPORTS)}, got {self.support!r}")


class RandomFeatures:
    r"""Random Fourier features with a law $\omega \sim N(\mu, \mathrm{diag}\,\sigma^2)$ given by networks.

    The posterior network reads the mean support feature, the prior network the mean feature of the queries.

    Args:
        posterior: networks from f features to 2f numbers, $\mu$ and $\log\sigma^2$.
        prior: the same for the prior.
        n_random: features D.
        generator: phases, and the noise that is used in evaluations.
    """

    def __init__(
        self, posterior: NetworkStack, prior: NetworkStack, n_random: int, *, generator: torch.Generator
    ) -> None:
        self.posterior, self.prior = posterior, prior
        example = posterior.parameters()[-1]
        options: dict[str, Any] = {"generator": generator, "device": example.device, "dtype": example.dtype}
        self.phase = 2 * torch.pi * torch.rand(n_random, **options)
        self.noise = torch.randn((example.shape[-1] // 2, n_random), **options)

    def parameters(self) -> list[Tensor]:
        """Of both networks."""
        return [*self.posterior.parameters(), *self.prior.parameters()]

    def kernels(
        self, h: Float[Tensor, "r n f"], support: Float[Tensor, "r m f"], *, generator: torch.Generator | None
    ) -> tuple[Float[Tensor, "r n m"], Float[Tensor, "r m m"], Float[Tensor, " r"]]:
        """Kernel with the queries, kernel of the support, divergence from the prior; fixed noise without generator."""
        mean, log_var = self.posterior(support.mean(1, keepdim=True)).chunk(2, -1)
        prior_mean, prior_log_var = self.prior(h.mean(1, keepdim=True)).chunk(2, -1)
        noise = self.noise
        if generator is not None:
            noise = torch.randn(noise.shape, generator=generator, device=h.device, dtype=h.dtype)
        omega = mean.transpose(1, 2) + (0.5 * log_var).exp().transpose(1, 2) * noise
        queries, keys = fourier_features(h, omega, self.phase), fourier_features(support, omega, self.phase)
        divergence = gaussian_kl(mean, log_var, prior_mean, prior_log_var)[:, 0]
        return linear_kernel(queries, keys), linear_kernel(keys, keys), divergence


class KernelLearners:
    """Learners side by side.

    Args:
        learners: how to learn; networks of one seed should start with equal weights.
        stack: networks with a method `features`; learners times seeds.
        n_seeds: seeds.
        n_classes: classes of a task.
        dropout: share of the features that is dropped in training.
        random_features: for the learners with kernel `vrf`, one network per learner and seed.
        divergence_weight: weight of the divergence of random features.

    Attributes:
        scalars: ridge, gain and bias of every network, one tensor per finished or current task.
    """

    def __init__(
        self,
        learners: Sequence[Learner],
        stack: NetworkStack,
        n_seeds: int,
        n_classes: int,
        *,
        dropout: float = 0.0,
        random_features: RandomFeatures | None = None,
        divergence_weight: float = 0.01,
    ) -> None:
        if len(stack) != len(learners) * n_seeds:
            raise ValueError(f"{len(learners)} learners of {n_seeds} seeds need as many networks, got {len(stack)}")
        self.learners, self.stack, self.n_seeds, self.n_classes = list(learners), stack, n_seeds, n_classes
        self.dropout, self.random_features, self.divergence_weight = dropout, random_features, divergence_weight
        self.scalars: list[Tensor] = []
        example = stack.parameters()[0]
        self.device, self.dtype = example.device, example.dtype
        self.groups = {kernel: self._rows(kernel) for kernel in dict.fromkeys(each.kernel for each in learners)}
        self.lr_factors = self._per_network([each.lr_factor for each in learners])
        self.ridge_is_fixed = self._per_network([float(not each.learns_ridge) for each in learners]).bool()

    def _rows(self, kernel: str) -> Int[Tensor, " _"]:
        of_network = [each.kernel == kernel for each in self.learners for _ in range(self.n_seeds)]
        return torch.tensor(of_network, device=self.device).nonzero()[:, 0]

    def _per_network(self, values: Sequence[float]) -> Float[Tensor, " r"]:
        return torch.tensor(list(values), device=self.device, dtype=self.dtype).repeat_interleave(self.n_seeds)

    def select_supports(
        self, real: Float[Tensor, "s k m d"], generated: Float[Tensor, "v k m d"]
    ) -> Float[Tensor, "r k m d"]:
        """The supports of every network in evaluations: real or generated, from its variant of the generator."""
        variants = generated.split(self.n_seeds)
        is_real = [each.support in ("real", "fresh") for each in self.learners]
        parts = zip(self.learners, is_real, strict=True)
        return torch.cat([real if own else variants[each.variant] for each, own in parts])

    def training_supports(
        self, task: Task, trace: Trace, step: int, m: int, generator: torch.Generator
    ) -> Float[Tensor, "r k m d"]:
        """The supports of every network at a training step, m samples per class, without gradient."""
        reserve = task.coreset
        running = trace.support_at(step)[:, :, :m].split(self.n_seeds)
        chosen = []
        for each in self.learners:
            if each.support == "real":
                chosen.append(reserve[:, :, :m])
            elif each.support == "fresh":
                order = torch.rand(reserve.shape[:3], generator=generator, device=reserve.device).argsort(-1)[..., :m]
                chosen.append(reserve.gather(2, order[..., None].expand(*order.shape, reserve.shape[3])))
            elif each.support == "finished":
                chosen.append(trace.finished_at(step)[:, :, :m].split(self.n_seeds)[each.variant])
            else:
                chosen.append(running[each.variant])
        return torch.cat(chosen)

    def generated_supports(self, generated: Float[Tensor, "v k m d"]) -> Float[Tensor, "r k m d"]:
        """Generated supports for every network, also for those that learn with real ones."""
        variants = generated.split(self.n_seeds)
        return torch.cat([variants[each.variant] for each in self.learners])

    def tile(self, x: Tensor) -> Tensor:
        """Values of the seeds, repeated for every learner."""
        return x.repeat(len(self.learners), *[1] * (x.ndim - 1))

    def logits(
        self,
        t: int,
        h: Float[Tensor, "r n f"],
        support: Float[Tensor, "r km f"],
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, "r n k"], Float[Tensor, " r"]]:
        """Logits of the heads of task t, from unit features of queries and supports, and the divergence.

        Args:
            t: task.
            h: features of the queries.
            support: features of the supports, class by class.
            generator: noise of random features in training; fixed noise without one.
        """
        k = self.n_classes
        onehot = torch.eye(k, device=h.device, dtype=h.dtype).repeat_interleave(support.shape[1] // k, 0)
        ridge = torch.where(self.ridge_is_fixed, self.scalars[t][:, 0].detach(), self.scalars[t][:, 0])
        scalars = torch.cat([ridge[:, None], self.scalars[t][:, 1:]], 1)
        parts, rows_in_order = [], torch.cat(list(self.groups.values()))
        divergence = torch.zeros(len(h), device=h.device, dtype=h.dtype)
        for kernel, rows in self.groups.items():
            queries, keys = (h, support) if len(rows) == len(h) else (h[rows], support[rows])
            if kernel == VARIATIONAL:
                assert self.random_features is not None
                cross, gram, extra = self.random_features.kernels(queries, keys, generator=generator)
                divergence = divergence.index_add(0, rows, extra)
            else:
                cross, gram = KERNELS[kernel](queries, keys), KERNELS[kernel](keys, keys)
            labels = onehot.expand(len(rows), *onehot.shape)
            parts.append(krr_logits(cross, gram, labels, scalars[rows]))
        return torch.cat(parts)[rows_in_order.argsort()], divergence

    def train_task(
        self,
        t: int,
        task: Task,
        batches: Int[Tensor, "n_steps s b"],
        trace: Trace,
        recipe: Recipe,
        *,
        m: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "n_steps r"]:
        """Train networks and the scalars of task t on cross-entropy; nothing of earlier tasks is touched or replayed.

        Args:
            t: number of the task, the next one.
            task: its samples; the first m samples per class of its coreset are the real support.
            batches: training samples of every step and seed.
            trace: supports that the generator handed out during its own training on the task.
            recipe: optimiser.
            m: samples per class of the supports.
            generator: dropout and random features.

        Returns:
            Loss before each step.
        """
        self.scalars.append(new_scalars(len(self.stack), self.device, self.dtype).requires_grad_())
        rows = torch.arange(self.n_seeds, device=self.device)[:, None]
        n_batch = batches.shape[2]

        def loss_at(step: int) -> Float[Tensor, " r"]:
            index = batches[step]
            supports = self.training_supports(task, trace, step, m, generator)
            x = torch.cat([self.tile(task.x[rows, index]), supports.flatten(1, 2)], 1)
            h = self.stack(x, method="features")
            if self.dropout:
                kept = torch.rand(h.shape, generator=generator, device=h.device, dtype=h.dtype) >= self.dropout
                h = h * kept / (1 - self.dropout)
            queries, keys = F.normalize(h, dim=-1).split([n_batch, supports.shape[1] * supports.shape[2]], 1)
            logits, divergence = self.logits(t, queries, keys, generator=generator)
            targets = self.tile(task.y[rows, index])
            losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").reshape(targets.shape)
            # momentum SGD is linear in the gradient: a factor of the loss is a factor of the learning rate
            return self.lr_factors * (losses.mean(1) + self.divergence_weight * divergence)

        extra = [] if self.random_features is None else self.random_features.parameters()
        return train([*self.stack.parameters(), *extra, self.scalars[t]], loss_at, recipe)

    @torch.no_grad()
    def features(self, x: Float[Tensor, "_ n d"]) -> Float[Tensor, "r n f"]:
        """Unit features, without dropout; samples of the seeds are shown to every learner."""
        own = x if len(x) == len(self.stack) else self.tile(x)
        return F.normalize(predict(self.stack, own, method="features", batch_size=1024), dim=-1)

    @torch.no_grad()
    def accuracy(
        self, t: int, h: Float[Tensor, "r n f"], y: Int[Tensor, "s n"], support: Float[Tensor, "r k m f"]
    ) -> Float[Tensor, " r"]:
        """Accuracy of the heads of task t, solved anew on the features of a support set."""
        logits, _ = self.logits(t, h, support.flatten(1, 2))
        return (logits.argmax(-1) == self.tile(y)).to(h.dtype).mean(1)
