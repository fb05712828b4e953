r"""The generative model of GKCL: a variational autoencoder with a prior per task and class, kept alive by replay.

v networks (variants times s seeds, variant by variant), b samples of a batch, n samples, d values, k classes of a task,
z latent values, m samples per class.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from glocal.nn.stack import NetworkStack, Weights
from glocal.nn.training import Recipe, train
from glocal.supervision.gkcl import gaussian_kl, supervised_contrast
from glocal.supervision.gkcl_data import Task

LIKELIHOODS = ("bernoulli", "gaussian")


@dataclass(frozen=True)
class GeneratorSettings:
    r"""Weights of the generator's objective.

    Args:
        likelihood: `bernoulli` for values in [0, 1], `gaussian` otherwise.
        sigma: standard deviation of the Gaussian likelihood.
        beta: weight $\beta$ of the divergence from the prior.
        temperature: of the contrastive term.
        replay_ratio: replayed samples per current sample; 0 switches replay off.
        steps_ratio: generator steps per step of the classifier.
        support_every: steps of the classifier between two support sets drawn for the kernel heads.
        prior_scale: standard deviation of the start values of the prior means; it sets how far codes lie apart.

    Raises:
        ValueError: for an unknown likelihood.
    """

    likelihood: str = "bernoulli"
    sigma: float = 0.5
    beta: float = 1.0
    temperature: float = 0.1
    replay_ratio: float = 1.0
    steps_ratio: int = 1
    support_every: int = 1
    prior_scale: float = 4.0

    def __post_init__(self) -> None:
        if self.likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}, got {self.likelihood!r}")


@dataclass
class Trace:
    """What the generator handed out, by step of the classifier: supports and replayed samples of its training,
    and, where a control asks for them, supports drawn after that training."""

    supports: list[Float[Tensor, "v k m d"]] = field(default_factory=list)
    replayed: list[Float[Tensor, "v b d"]] = field(default_factory=list)
    codes: list[Int[Tensor, "s b"]] = field(default_factory=list)
    finished: list[Float[Tensor, "v k m d"]] = field(default_factory=list)
    support_every: int = 1

    def support_at(self, step: int) -> Float[Tensor, "v k m d"]:
        """The latest support set at a step of the classifier."""
        return self.supports[step // self.support_every]

    def finished_at(self, step: int) -> Float[Tensor, "v k m d"]:
        """The same, from the generator that has learnt the whole task."""
        return (self.finished or self.supports)[step // self.support_every]


class Generator:
    r"""Autoencoders side by side, with the prior $N(m_{t,y}, \mathrm{diag}\,s_{t,y}^2)$ for task t and class y.

    Args:
        stack: autoencoders with methods `encode` and `decode`, see `gkcl_networks`; variants times seeds.
        n_tasks: tasks.
        n_classes: classes of a task.
        n_latent: z.
        contrast_weights: weight of the contrastive term, one per variant.
        settings: the rest of the objective.
        generators: one per seed, for the start values of the priors: $m \sim N(0, c^2I)$, $s = 1$.
    """

    def __init__(
        self,
        stack: NetworkStack,
        n_tasks: int,
        n_classes: int,
        n_latent: int,
        contrast_weights: Sequence[float],
        settings: GeneratorSettings,
        *,
        generators: Sequence[torch.Generator],
    ) -> None:
        self.stack, self.n_tasks, self.n_classes, self.n_latent = stack, n_tasks, n_classes, n_latent
        self.settings, self.n_seeds, self.n_variants = settings, len(generators), len(contrast_weights)
        if len(stack) != self.n_seeds * self.n_variants:
            raise ValueError(f"{self.n_variants} variants of {self.n_seeds} seeds need as many networks: {len(stack)}")
        example = stack.parameters()[0]
        weights = torch.tensor(list(contrast_weights), device=example.device, dtype=example.dtype)
        self.contrast_weights = weights.repeat_interleave(self.n_seeds)
        shape = (n_classes, n_latent)
        options: dict[str, Any] = {"device": example.device, "dtype": example.dtype}
        start = [torch.stack([torch.randn(shape, generator=g, **options) for g in generators]) for _ in range(n_tasks)]
        self.prior_means = [(settings.prior_scale * self.tile(means)).requires_grad_() for means in start]
        self.prior_log_vars = [torch.zeros_like(means).requires_grad_() for means in self.prior_means]

    def tile(self, x: Tensor) -> Tensor:
        """Values of the seeds, repeated for every variant."""
        return x if self.n_variants == 1 else x.repeat(self.n_variants, *[1] * (x.ndim - 1))

    def priors(self, t: int) -> tuple[Float[Tensor, "v c z"], Float[Tensor, "v c z"]]:
        """Means and log variances of all codes (task times k plus class) up to task t; only task t has gradients."""
        both = []
        for parameters in (self.prior_means, self.prior_log_vars):
            both.append(torch.cat([p.detach() if task < t else p for task, p in enumerate(parameters[: t + 1])], 1))
        return both[0], both[1]

    def objective(
        self, x: Float[Tensor, "v b d"], codes: Int[Tensor, "v b"], noise: Float[Tensor, "v b z"], t: int
    ) -> Float[Tensor, " v"]:
        r"""$L_{elbo} + w_{con}L_{con}$, nats per sample.

        $L_{elbo} = E_q[-\log p(x | z)] + \beta\,\mathrm{KL}(q(z | x)\,\|\,p(z | y, t))$ with one draw of z.
        """
        mean, log_var = self.stack(x, method="encode").chunk(2, -1)
        z = mean + (0.5 * log_var).exp() * noise
        decoded = self.stack(z, method="decode")
        rows = torch.arange(len(x), device=x.device)[:, None]
        prior_means, prior_log_vars = self.priors(t)
        divergence = gaussian_kl(mean, log_var, prior_means[rows, codes], prior_log_vars[rows, codes])
        loss = (self.reconstruction(decoded, x) + self.settings.beta * divergence).mean(1)
        if bool((self.contrast_weights != 0).any()):
            loss = loss + self.contrast_weights * supervised_contrast(mean, codes, self.settings.temperature)
        return loss

    def reconstruction(self, decoded: Float[Tensor, "v b d"], x: Float[Tensor, "v b d"]) -> Float[Tensor, "v b"]:
        """Negative log likelihood of samples, without the constant of the Gaussian one."""
        if self.settings.likelihood == "gaussian":
            return 0.5 * ((x - decoded) / self.settings.sigma).square().sum(-1)
        return F.binary_cross_entropy_with_logits(decoded, x, reduction="none").sum(-1)

    @torch.no_grad()
    def generate(
        self, codes: Int[Tensor, "s n"], noise: Float[Tensor, "s n z"], *, weights: Weights | None = None
    ) -> Float[Tensor, "v n d"]:
        """Mean samples of given codes, from the current decoder or from the frozen `weights` of one.

        Priors of finished tasks never change, so that a frozen copy of them is not needed.
        """
        rows = torch.arange(len(self.stack), device=codes.device)[:, None]
        codes = self.tile(codes)
        means, log_vars = (torch.cat(parameters, 1) for parameters in (self.prior_means, self.prior_log_vars))
        z = means[rows, codes] + (0.5 * log_vars[rows, codes]).exp() * self.tile(noise)
        decoded = self.stack(z, method="decode", weights=weights)
        return decoded if self.settings.likelihood == "gaussian" else decoded.sigmoid()

    def support(self, t: int, noise: Float[Tensor, "s k m z"]) -> Float[Tensor, "v k m d"]:
        """m samples of every class of task t, class by class; equal noise gives equal samples."""
        s, k, m, z = noise.shape
        codes = t * k + torch.arange(k, device=noise.device).repeat_interleave(m).expand(s, k * m)
        samples = self.generate(codes, noise.reshape(s, k * m, z))
        return samples.reshape(len(samples), k, m, -1)

    def noise(self, m: int, *, generator: torch.Generator) -> Float[Tensor, "s k m z"]:
        """Latent noise of a support set."""
        means = self.prior_means[0]
        shape = (self.n_seeds, self.n_classes, m, self.n_latent)
        return torch.randn(shape, generator=generator, device=means.device, dtype=means.dtype)

    def train_task(
        self,
        t: int,
        task: Task,
        batches: Int[Tensor, "n_steps s b"],
        recipe: Recipe,
        *,
        m: int,
        generator: torch.Generator,
    ) -> Trace:
        """Learn task t from its batches and from as many replayed samples of earlier tasks, and hand out supports.

        The samples are replayed from a copy of the generator frozen before the task; earlier priors stay as they are.

        Args:
            t: number of the task.
            task: its samples.
            batches: training samples of every generator step and seed.
            recipe: optimiser.
            m: samples per class of the supports in the trace.
            generator: latent noise and replayed codes.
        """
        trace = Trace(support_every=self.settings.support_every)
        frozen = self.stack.state()
        rows = torch.arange(self.n_seeds, device=task.x.device)[:, None]
        n_old = round(self.settings.replay_ratio * batches.shape[2]) if t else 0
        options: dict[str, Any] = {"generator": generator, "device": task.x.device}

        def loss_at(step: int) -> Float[Tensor, " v"]:
            index = batches[step]
            x, codes = self.tile(task.x[rows, index]), t * self.n_classes + task.y[rows, index]
            if n_old:
                old = torch.randint(t * self.n_classes, (self.n_seeds, n_old), **options)
                noise = torch.randn((*old.shape, self.n_latent), **options, dtype=x.dtype)
                replayed = self.generate(old, noise, weights=frozen)
                x, codes = torch.cat([x, replayed], 1), torch.cat([codes, old], 1)
                if step % self.settings.steps_ratio == 0:
                    trace.replayed.append(replayed[: self.n_seeds])
                    trace.codes.append(old)
            noise = torch.randn((*codes.shape, self.n_latent), **options, dtype=x.dtype)
            return self.objective(x, self.tile(codes), self.tile(noise), t)

        def hand_out(step: int) -> None:
            if step % (self.settings.steps_ratio * self.settings.support_every) == 0:
                trace.supports.append(self.support(t, self.noise(m, generator=generator)))

        trained = [*self.stack.parameters(), self.prior_means[t], self.prior_log_vars[t]]
        train(trained, loss_at, recipe, after_step=hand_out)
        return trace

    def n_bytes(self, n_tasks: int | None = None) -> int:
        """Memory of one generator: encoder, decoder and the priors of `n_tasks` tasks (all by default)."""
        network = sum(tensor[0].numel() * tensor.element_size() for tensor in self.stack.parameters())
        prior = 2 * self.n_classes * self.n_latent * self.prior_means[0].element_size()
        return network + prior * (self.n_tasks if n_tasks is None else n_tasks)
