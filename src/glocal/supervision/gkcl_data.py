"""Streams of tasks: rotated images, permuted pixels, groups of classes. All seeds of an experiment at once.

s seeds, n samples of a task, d values of a sample, k classes of a task, q samples per class in reserve.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from glocal.data import load
from glocal.data.fakes import fake_image_splits
from glocal.data.hubs import HubImages, load_hub_images
from glocal.data.splits import stratified_split
from glocal.data.types import ImageData, Splits, TableData

STREAMS = ("rotated", "permuted", "split")
MNIST = HubImages("mnist", "ylecun/mnist", 28, 10, "image", "label", "train", "test")


@dataclass(frozen=True)
class Pool:
    """Samples to make streams from.

    Args:
        x: values, one row per sample; images are flattened, values in [0, 1].
        labels: classes.
        shape: shape of a sample; (channels, height, width) for images.
        likelihood: `bernoulli` for values in [0, 1], `gaussian` for others.
        n_train: the first so many rows are for training, the others for testing; 0 if there is no such split.
    """

    x: Float[Tensor, "n d"]
    labels: Int[Tensor, " n"]
    shape: tuple[int, ...]
    likelihood: str
    n_train: int = 0


@dataclass(frozen=True)
class Task:
    """One task of every seed, labels within the task; `coreset` is class by class and never trained on otherwise."""

    x: Float[Tensor, "s n d"]
    y: Int[Tensor, "s n"]
    x_val: Float[Tensor, "s v d"]
    y_val: Int[Tensor, "s v"]
    x_test: Float[Tensor, "s n_test d"]
    y_test: Int[Tensor, "s n_test"]
    coreset: Float[Tensor, "s k q d"]


def load_pool(name: str, *, pooling: int = 1, fake: bool = False) -> Pool:
    """Samples of a data set: `mnist5k`, `letter`, or at full scale `mnist` and `cifar100`.

    Args:
        name: the data set.
        pooling: side of the squares of pixels that are averaged.
        fake: random stand-in for rehearsals.
    """
    if name == "mnist":
        names = tuple(str(digit) for digit in range(10))
        shapes: dict[str, Any] = {"n_train": 80, "n_test": 20, "shape": (1, 28, 28), "class_names": names}
        data: Any = fake_image_splits("mnist", **shapes) if fake else load_hub_images(MNIST)
    else:
        data = load(name, fake=fake)
    if isinstance(data, TableData):
        return Pool((data.x - 7.5) / 3, data.labels, (data.x.shape[1],), "gaussian")  # values of `letter` are 0 to 15
    parts = [data.train, data.test] if isinstance(data, Splits) else [data]
    images = torch.cat([_pooled(part, pooling, grey=name == "mnist") for part in parts])
    n_train = len(parts[0]) if len(parts) > 1 else 0
    labels = torch.cat([part.labels for part in parts])
    return Pool(images.flatten(1), labels, tuple(images.shape[1:]), "bernoulli", n_train)


def _pooled(data: ImageData, pooling: int, *, grey: bool) -> Float[Tensor, "n c h w"]:
    images = data.images.mean(1, keepdim=True) if grey else data.images
    return F.avg_pool2d(images, pooling) if pooling > 1 else images


def rotate(images: Float[Tensor, "n c h w"], degrees: float) -> Float[Tensor, "n c h w"]:
    """Images turned anticlockwise about their centre, bilinear, zero outside."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    aspect = images.shape[-2] / images.shape[-1]  # keeps rotations rigid in oblong pictures
    theta = torch.tensor([[cos, -sin * aspect, 0.0], [sin / aspect, cos, 0.0]], device=images.device)
    grid = F.affine_grid(theta.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).clamp(0, 1)


class TaskStream:
    """A stream of tasks, with its own split of the samples for every seed.

    Args:
        kind: `rotated` (task t turns images by t times `degrees`), `permuted` (every task but the first shuffles the
            values in an order of its own) or `split` (every task has `n_classes` classes of its own).
        pool: the samples.
        n_tasks: tasks.
        sizes: samples per class for training, reserve, validation and test.
        degrees: rotation between two tasks.
        n_classes: classes per task of `split`; the other streams have all of them in every task.
        generators: one per seed, on the CPU: splits, orders of values and of classes.
        device: where the tasks are put.

    Raises:
        ValueError: for an unknown kind, rotated tables, or more tasks than the classes allow.
    """

    def __init__(
        self,
        kind: str,
        pool: Pool,
        n_tasks: int,
        sizes: tuple[int, int, int, int],
        *,
        degrees: float = 20.0,
        n_classes: int = 5,
        generators: Sequence[torch.Generator],
        device: str = "cpu",
    ) -> None:
        if kind not in STREAMS:
            raise ValueError(f"kind must be one of {', '.join(STREAMS)}, got {kind!r}")
        if kind == "rotated" and len(pool.shape) < 3:
            raise ValueError(f"only images can be rotated, got samples of shape {pool.shape}: use another stream")
        total = int(pool.labels.max()) + 1
        if kind == "split" and n_tasks * n_classes > total:
            raise ValueError(f"{n_tasks} tasks of {n_classes} classes need more than the {total} classes there are")
        self.kind, self.pool, self.n_tasks, self.degrees, self.device = kind, pool, n_tasks, degrees, device
        self.n_classes = n_classes if kind == "split" else total
        self.n_seeds = len(generators)
        self.parts = [_split(pool, sizes, generator) for generator in generators]
        self.orders = [torch.randperm(total, generator=generator) for generator in generators]
        d = pool.x.shape[1]
        same = torch.arange(d)
        self.permutations = [
            torch.stack([same, *(torch.randperm(d, generator=generator) for _ in range(n_tasks - 1))])
            for generator in generators
        ]

    def task(self, t: int) -> Task:
        """Task number t, counted from 0."""
        x = self.pool.x
        if self.kind == "rotated" and t:
            x = rotate(x.reshape(-1, *self.pool.shape), t * self.degrees).flatten(1)
        parts = [self._part(x, t, part) for part in range(4)]
        (train, y), (reserve, y_reserve), (val, y_val), (test, y_test) = parts
        by_class = y_reserve.argsort(dim=1, stable=True)
        coreset = reserve.gather(1, by_class[..., None].expand_as(reserve))
        coreset = coreset.reshape(self.n_seeds, self.n_classes, -1, x.shape[1])
        tensors = (train, y, val, y_val, test, y_test, coreset)
        return Task(*(tensor.to(self.device) for tensor in tensors))

    def _part(self, x: Tensor, t: int, part: int) -> tuple[Tensor, Tensor]:
        """Samples and labels of one part (training, reserve, validation, test) for every seed."""
        rows, classes = [], []
        for seed in range(self.n_seeds):
            index = self.parts[seed][part]
            labels = self.pool.labels[index]
            if self.kind == "split":
                of_task = self.orders[seed][t * self.n_classes : (t + 1) * self.n_classes]
                is_in = (labels[:, None] == of_task).any(1)
                index, labels = index[is_in], (labels[is_in][:, None] == of_task).long().argmax(1)
            values = x[index]
            rows.append(values[:, self.permutations[seed][t]] if self.kind == "permuted" else values)
            classes.append(labels)
        return torch.stack(rows), torch.stack(classes)


def _split(pool: Pool, sizes: tuple[int, int, int, int], generator: torch.Generator) -> list[Int[Tensor, " _"]]:
    """Indices of training, reserve, validation and test samples, equally many of every class."""
    if not pool.n_train:
        return list(stratified_split(pool.labels, sizes, generator=generator))
    inner = stratified_split(pool.labels[: pool.n_train], sizes[:3], generator=generator)
    (test,) = stratified_split(pool.labels[pool.n_train :], sizes[3:], generator=generator)
    return [*inner, test + pool.n_train]
