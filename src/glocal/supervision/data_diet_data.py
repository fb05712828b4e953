r"""Repetitions of an experiment on one data set, each with its own split, side by side in one tensor.

n examples altogether, t training examples and q test examples per repetition, s networks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from glocal.data import load
from glocal.data.sampling import permute_labels
from glocal.data.splits import stratified_split
from glocal.data.types import Splits
from glocal.nn.stack import accuracy
from glocal.nn.training import Recipe
from glocal.seeding import torch_generator
from glocal.supervision import data_diet_training as training

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Study:
    """Training and test sets of all repetitions; indices point into `x`.

    Args:
        x: standardised inputs.
        labels: class indices used for training, noisy if noise was added.
        train: training examples of each repetition.
        test: test examples of each repetition.
        n_classes: number of classes.
        clean: true labels.
    """

    x: Float[Tensor, "n ..."]
    labels: Int[Tensor, " n"]
    train: Int[Tensor, "reps t"]
    test: Int[Tensor, "reps q"]
    n_classes: int
    clean: Int[Tensor, " n"]

    @property
    def n_train(self) -> int:
        """Training examples of a repetition."""
        return self.train.shape[1]

    @property
    def is_changed(self) -> Bool[Tensor, "reps t"]:
        """Which training labels are wrong."""
        return (self.labels != self.clean)[self.train]

    def subset(self, positions: Sequence[Int[Tensor, " _"]]) -> list[Int[Tensor, " _"]]:
        """Indices into `x` of positions in the training set of each repetition."""
        return [self.train[rep, p] for rep, p in enumerate(positions)]


def make_study(
    name: str,
    n_train: int,
    n_test: int,
    n_reps: int,
    *,
    seed: int,
    side: int = 0,
    device: str = "cpu",
    fake: bool = False,
) -> Study:
    """Split a data set anew for every repetition and standardise it by the statistics of the training part.

    Sets with a published split keep it, are shared by all repetitions and normalised by channel; they are cut to
    `n_train` and `n_test` examples if they are larger.

    Args:
        name: a table or an image set of the registry.
        n_train: training examples of a repetition, rounded to whole classes.
        n_test: test examples of a repetition, likewise.
        n_reps: repetitions.
        seed: of the splits.
        side: average-pool images to this side; 0 leaves them.
        device: where the tensors go.
        fake: use the registry's random stand-in.
    """
    data = load(name, fake=fake)
    if isinstance(data, Splits):
        parts = [
            (part.images[:size], part.labels[:size]) for part, size in ((data.train, n_train), (data.test, n_test))
        ]
        x, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (CIFAR_MEAN, CIFAR_STD))
        cut = len(parts[0][1])
        train, test = (index.expand(n_reps, -1).clone() for index in torch.arange(len(x)).split([cut, len(x) - cut]))
        x, labels = ((x - mean) / std).to(device), labels.to(device)
        return Study(x, labels, train.to(device), test.to(device), len(data.train.class_names), labels)
    raw = data.images if hasattr(data, "images") else data.x
    if side:
        raw = F.adaptive_avg_pool2d(raw, side)
    sizes = [n_train / len(data), n_test / len(data)]
    copies, trains, tests = [], [], []
    for rep in range(n_reps):
        train, test = stratified_split(data.labels, sizes, generator=torch_generator(seed, "split", name, rep))
        mean, std = raw[train].mean(0), raw[train].std(0)
        scale = std.clamp_min(1e-6) if raw.ndim == 2 else std.square().mean().sqrt()  # one scale for all pixels
        copies.append((raw - mean) / scale)
        trains.append(train + rep * len(data))
        tests.append(test + rep * len(data))
    labels = data.labels.repeat(n_reps).to(device)
    train, test = (torch.stack(part).to(device) for part in (trains, tests))
    return Study(torch.cat(copies).to(device), labels, train, test, len(data.class_names), labels)


def with_noise(study: Study, fraction: float, *, seed: int) -> Study:
    """Permute the labels of a random share of the training examples among themselves; test labels stay clean.

    Repetitions that share their training examples share the noise.
    """
    labels = study.labels.clone()
    is_shared = len(study.train) > 1 and torch.equal(study.train[0], study.train[1])
    for rep, index in enumerate(study.train[:1] if is_shared else study.train):
        noisy = permute_labels(study.clean[index].cpu(), fraction, generator=torch_generator(seed, "noise", rep))
        labels[index] = noisy.to(labels.device)
    return replace(study, labels=labels)


@dataclass(frozen=True)
class Trainer:
    """How networks of one study are trained: the same for all subsets and methods.

    Args:
        study: the data.
        make: builds a network.
        recipe: optimiser, schedule and number of steps.
        seed: of weights and data orders.
        side_by_side: networks per stack.
        is_augmented: random crops and flips.
        precision: `float32` or `bfloat16`.
    """

    study: Study
    make: Callable[[], nn.Module]
    recipe: Recipe
    seed: int
    side_by_side: int = 48
    is_augmented: bool = False
    precision: str = "float32"

    def generators(self, purpose: str, keys: Sequence[tuple[int, int]]) -> list[torch.Generator]:
        """One generator per network; `keys` are (repetition, number) and equal keys give equal draws."""
        device = self.study.x.device
        return [torch_generator(self.seed, purpose, *key, device=device) for key in keys]

    def stack(self, purpose: str, keys: Sequence[tuple[int, int]]) -> training.NetworkStack:
        """Fresh networks, with initial weights named by purpose and key; equal keys give equal weights."""
        distinct = list(dict.fromkeys(keys))
        stack = training.build_stack(self.make, self.generators(f"{purpose} weights", distinct))
        return stack if len(distinct) == len(keys) else stack.select([distinct.index(key) for key in keys])

    def fit(
        self,
        stack: training.NetworkStack,
        batches: Int[Tensor, "n_steps s b"],
        recipe: Recipe | None = None,
        *,
        watch: training.Watch | None = None,
        after_step: Callable[[int], None] | None = None,
    ) -> None:
        """Train a stack on given batches; see `glocal.supervision.data_diet_training.fit`."""
        device = self.study.x.device
        generator = torch_generator(self.seed, "augmentation", device=device)

        def augment(images: Tensor) -> Tensor:
            return training.crop_and_flip(images, generator=generator)

        training.fit(
            stack,
            self.study.x,
            self.study.labels,
            batches,
            recipe or self.recipe,
            augment=augment if self.is_augmented else None,
            watch=watch,
            after_step=after_step,
            precision=self.precision,
        )

    def accuracies(
        self,
        subsets: Mapping[str, Sequence[Int[Tensor, " _"]]],
        *,
        n_retrain: int = 1,
    ) -> dict[str, Float[np.ndarray, " reps"]]:
        """Test accuracy in per cent of fresh networks trained on subsets, one value per repetition.

        Repetition r starts from the same weights for every subset.

        Args:
            subsets: by name, for each repetition the positions kept of its training set.
            n_retrain: networks per repetition, whose accuracies are averaged.
        """
        names = [name for name in subsets for _ in subsets[name] for _ in range(n_retrain)]
        keys = [(rep, k) for name in subsets for rep in range(len(subsets[name])) for k in range(n_retrain)]
        index = [self.study.train[rep, subsets[name][rep]] for name, (rep, _) in zip(names, keys, strict=True)]
        found: dict[str, list[float]] = {name: [] for name in subsets}
        for start in range(0, len(keys), self.side_by_side):
            part = slice(start, start + self.side_by_side)
            stack = self.stack("retrain", keys[part])
            order = self.generators("retrain order", keys[part])
            self.fit(stack, training.batches_for(index[part], self.recipe, generators=order))
            test = self.study.test[[rep for rep, _ in keys[part]]]
            right = accuracy(training.logits_on(stack, self.study.x, test), self.study.clean[test])
            for name, value in zip(names[part], right.tolist(), strict=True):
                found[name].append(100 * value)
        return {name: np.array(values).reshape(-1, n_retrain).mean(1) for name, values in found.items()}
