"""What a stream of generative kernel continual learning starts from: settings, untrained generators and learners."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from glocal.nn.networks import MLP
from glocal.nn.stack import NetworkStack
from glocal.nn.training import Recipe
from glocal.supervision.gkcl import VARIATIONAL
from glocal.supervision.gkcl_data import TaskStream
from glocal.supervision.gkcl_generator import Generator, GeneratorSettings
from glocal.supervision.gkcl_heads import KernelLearners, Learner, RandomFeatures
from glocal.supervision.gkcl_networks import make_classifier, make_vae

Draw = Callable[..., torch.Generator]  # names -> a generator of random numbers


@dataclass(frozen=True)
class Settings:
    """Networks and budgets of a stream.

    Args:
        n_steps: steps of the classifier per task; the generator takes a multiple.
        batch_size: samples per step of the classifier.
        vae_batch_size: samples of the current task per step of the generator; 0 for `batch_size`.
        hidden: widths of the classifier, or the single width of a ResNet-18.
        vae_hidden: widths of the encoder, or the single width of a ResNet-18.
        n_latent: latent values.
        lr: learning rate of the classifier on the first task.
        lr_decay: its factor from task to task.
        momentum: of the classifier's SGD.
        vae_lr: learning rate of the generator's Adam.
        dropout: share of dropped features.
        n_random: random Fourier features.
        divergence_weight: weight of their divergence.
        n_fisher: samples for the Fisher information of EWC.
        is_conv: residual networks instead of perceptrons.
    """

    n_steps: int
    batch_size: int
    hidden: tuple[int, ...]
    vae_hidden: tuple[int, ...]
    n_latent: int
    lr: float = 0.1
    lr_decay: float = 0.8
    momentum: float = 0.8
    vae_lr: float = 1e-3
    vae_batch_size: int = 0
    dropout: float = 0.0
    n_random: int = 128
    divergence_weight: float = 0.01
    n_fisher: int = 64
    is_conv: bool = False

    def recipe(self, t: int) -> Recipe:
        """How the classifier learns task t."""
        lr = self.lr * self.lr_decay**t
        return Recipe(self.n_steps, lr, momentum=self.momentum, schedule="constant")


def make_generator(
    stream: TaskStream,
    settings: Settings,
    objective: GeneratorSettings,
    contrast_weights: Sequence[float],
    draw: Draw,
) -> Generator:
    """Untrained generators; those of one seed start alike in every variant."""
    names = [seed for _ in contrast_weights for seed in range(stream.n_seeds)]
    make = lambda: make_vae(stream.pool.shape, settings.vae_hidden, settings.n_latent, is_conv=settings.is_conv)  # noqa: E731
    stack = NetworkStack.build(make, [draw("vae", seed) for seed in names])
    starts = [draw("priors", seed) for seed in range(stream.n_seeds)]
    sizes = (stream.n_tasks, stream.n_classes, settings.n_latent)
    return Generator(stack, *sizes, contrast_weights, objective, generators=starts)


def make_classifiers(stream: TaskStream, settings: Settings, copies: int, draw: Draw) -> NetworkStack:
    """Untrained classifiers, `copies` for every seed, which start alike."""
    n_outputs = stream.n_tasks * stream.n_classes
    make = lambda: make_classifier(stream.pool.shape, settings.hidden, n_outputs, is_conv=settings.is_conv)  # noqa: E731
    return NetworkStack.build(make, [draw("classifier", seed) for _ in range(copies) for seed in range(stream.n_seeds)])


def make_learners(stream: TaskStream, settings: Settings, learners: Sequence[Learner], draw: Draw) -> KernelLearners:
    """Untrained kernel learners."""
    stack = make_classifiers(stream, settings, len(learners), draw)
    n_variational = sum(learner.kernel == VARIATIONAL for learner in learners)
    features = None
    if n_variational:
        f = stack.weights["head.weight"].shape[-1]
        names = [seed for _ in range(n_variational) for seed in range(stream.n_seeds)]
        make = lambda: MLP(f, [f], 2 * f)  # noqa: E731
        laws = [NetworkStack.build(make, [draw(law, seed) for seed in names]) for law in ("posterior", "prior")]
        features = RandomFeatures(laws[0], laws[1], settings.n_random, generator=draw("random features"))
    options: dict[str, Any] = {"dropout": settings.dropout, "divergence_weight": settings.divergence_weight}
    return KernelLearners(learners, stack, stream.n_seeds, stream.n_classes, random_features=features, **options)


def seconds(function: Callable[[], object], device: str) -> float:
    """Time of a call: CPU time, or wall time on an accelerator."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    function()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start
