"""Regression and classification problems of the deep kernel machine chapter (Yang et al. 2023, arXiv:2108.13097)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glocal.seeding import derive_seed, torch_generator


@dataclass(frozen=True)
class Split:
    """Standardised training, validation and test parts in float64, one problem per run, targets as columns."""

    x: Float[Tensor, "runs n d"]
    y: Float[Tensor, "runs n k"]
    x_val: Float[Tensor, "runs v d"]
    y_val: Float[Tensor, "runs v k"]
    x_test: Float[Tensor, "runs m d"]
    y_test: Float[Tensor, "runs m k"]

    def to(self, device: str | torch.device) -> "Split":
        """The same problems on `device`."""
        return Split(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def subset(self, index: Int[Tensor, " r"]) -> "Split":
        """The problems at `index`."""
        return Split(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def multi_index(n: int, *, seed: int, d: int = 12, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    r"""$y = \sin 2x_1 + x_1x_2 + \epsilon$ with `d` Gaussian inputs, of which two matter."""
    generator = torch_generator(seed, "multi_index")
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = (2 * x[:, 0]).sin() + x[:, 0] * x[:, 1]
    return x, (y + noise * torch.randn(n, generator=generator, dtype=torch.float64))[:, None]


def friedman(n: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """scikit-learn's `make_friedman1`: ten uniform inputs, of which five matter, noise of variance one."""
    from sklearn.datasets import make_friedman1

    x, y = make_friedman1(n, n_features=10, noise=1.0, random_state=derive_seed(seed, "friedman") % 2**32)
    return torch.from_numpy(x), torch.from_numpy(y)[:, None]


def diabetes(n: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """`n` rows of scikit-learn's diabetes table (442 patients, ten measurements), in random order.

    Raises:
        ValueError: if there are fewer rows.
    """
    from sklearn.datasets import load_diabetes

    table = load_diabetes()
    order = _some_rows(len(table.data), n, seed, "diabetes")
    return torch.from_numpy(table.data)[order], torch.from_numpy(table.target)[order, None]


def digits(n: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """`n` of scikit-learn's 8x8 digits, in random order, with one-hot targets.

    Raises:
        ValueError: if there are fewer images.
    """
    from sklearn.datasets import load_digits

    table = load_digits()
    order = _some_rows(len(table.data), n, seed, "digits")
    onehot = torch.eye(10, dtype=torch.float64)[torch.from_numpy(table.target)]
    return torch.from_numpy(table.data)[order], onehot[order]


def _some_rows(rows: int, n: int, seed: int, name: str) -> Int[Tensor, " n"]:
    if n > rows:
        raise ValueError(f"{name} has {rows} rows, {n} were asked for: lower the sizes of the parts")
    return torch.randperm(rows, generator=torch_generator(seed, name))[:n]


SOURCES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "multi_index": multi_index,
    "friedman": friedman,
    "diabetes": diabetes,
    "digits": digits,
}


def regression_split(name: str, sizes: tuple[int, int, int], *, seeds: list[int]) -> Split:
    """Independent draws of a regression problem, inputs and targets standardised by their training part.

    Args:
        name: a name in `SOURCES`.
        sizes: training, validation and test points.
        seeds: one problem per seed.

    Raises:
        ValueError: for an unknown name or more points than there are.
    """
    if name not in SOURCES:
        raise ValueError(f"the data set must be one of {', '.join(SOURCES)}, got {name!r}")
    parts = [standardised(*SOURCES[name](sum(sizes), seed=seed), sizes) for seed in seeds]
    return Split(*(torch.stack(part) for part in zip(*parts, strict=True)))


def standardised(x: Float[Tensor, "n d"], y: Float[Tensor, "n k"], sizes: tuple[int, int, int]) -> tuple[Tensor, ...]:
    """Consecutive parts of `sizes` with the training part's mean and deviation taken out; see `Split` for the order.

    A constant column stays constant. All columns of the targets share one deviation, so that a one-hot code is not
    distorted.
    """
    train = slice(0, sizes[0])
    spread = x[train].std(0, correction=0)
    x = (x - x[train].mean(0)) / torch.where(spread > 0, spread, 1.0)
    y = y - y[train].mean(0)
    y = y / y[train].square().mean().sqrt()
    return tuple(part for pair in zip(x.split(sizes), y.split(sizes), strict=True) for part in pair)


@dataclass(frozen=True)
class Classes:
    """Training and test points with class indices, inputs standardised, one problem per run."""

    x: Float[Tensor, "runs n d"]
    labels: Int[Tensor, "runs n"]
    x_test: Float[Tensor, "runs m d"]
    labels_test: Int[Tensor, "runs m"]

    def to(self, device: str | torch.device) -> "Classes":
        """The same problems on `device`."""
        return Classes(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def sine_bands(n: int, m: int, *, seeds: list[int]) -> Classes:
    r"""The toy of the group's code: $y = 6\sin 3x + N(0, 1)$, plus five for the second of two classes.

    Args:
        n: training points.
        m: test points.
        seeds: one problem per seed.

    Source: the sine example of the group's package, $x$ evenly spaced on $[-2, 2]$ with noise of deviation 0.1.
    """
    problems = []
    for seed in seeds:
        generator = torch_generator(seed, "sine_bands")
        total = n + m
        labels = torch.randperm(total, generator=generator) % 2
        first = torch.linspace(-2, 2, total, dtype=torch.float64)[torch.randperm(total, generator=generator)]
        first = first + 0.1 * torch.randn(total, generator=generator, dtype=torch.float64)
        second = 6 * (3 * first).sin() + 5 * labels + torch.randn(total, generator=generator, dtype=torch.float64)
        problems.append(_class_split(torch.stack([first, second], 1), labels, n))
    return Classes(*(torch.stack(part) for part in zip(*problems, strict=True)))


def table_classes(
    x: Float[Tensor, "rows d"], labels: Int[Tensor, " rows"], n: int, m: int, *, seeds: list[int]
) -> Classes:
    """Random training and test rows of a table, one draw per seed.

    Raises:
        ValueError: if there are fewer than `n + m` rows.
    """
    problems = []
    for seed in seeds:
        order = _some_rows(len(x), n + m, seed, "the table")
        problems.append(_class_split(x[order].double(), labels[order].long(), n))
    return Classes(*(torch.stack(part) for part in zip(*problems, strict=True)))


def _class_split(x: Tensor, labels: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    spread = x[:n].std(0, correction=0)
    x = (x - x[:n].mean(0)) / torch.where(spread > 0, spread, 1.0)
    return x[:n], labels[:n], x[n:], labels[n:]
