"""Two-class problems, targets plus and minus one: table rows and pooled images (Bai et al. 2022, arXiv:2201.01965)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from glocal.data.types import ImageData, Splits, TableData


@dataclass(frozen=True)
class BinaryProblems:
    r"""Independent train/test problems in float64; the last feature is the constant of the biases."""

    x: Float[Tensor, "runs n d"]
    y: Float[Tensor, "runs n"]
    x_test: Float[Tensor, "runs m d"]
    y_test: Float[Tensor, "runs m"]

    def to(self, device: str | torch.device) -> "BinaryProblems":
        """The same problems on `device`."""
        return BinaryProblems(*(part.to(device) for part in (self.x, self.y, self.x_test, self.y_test)))


def binary_problems(
    data: TableData | ImageData | Splits[ImageData],
    runs: int,
    *,
    classes: tuple[int, int],
    n: int,
    n_test: int,
    size: int,
    generator: torch.Generator,
) -> BinaryProblems:
    r"""Random train/test draws of two classes, the first with target $+1$.

    Table rows keep their first `size` features, standardised with the training rows. Images are averaged to
    `size` x `size` pixels and lose the mean training image. A column of ones is appended; table rows are then
    divided by three, so that an example has a length of about one.

    Args:
        data: the set; of published splits, the training part gives the training examples.
        runs: number of problems.
        classes: the two classes.
        n: training examples per problem, of both classes together.
        n_test: test examples per problem, or as many as are left.
        size: features of a row, or side of an image.
        generator: draws the examples.

    Raises:
        ValueError: if there are not enough examples.
    """
    parts = (data.train, data.test) if isinstance(data, Splits) else (data,)
    pools = [_two_classes(part, classes, size) for part in parts]
    spare = len(pools[0][1]) - n
    if spare < (1 if len(pools) == 1 else 0):
        raise ValueError(f"n must leave examples for the test, got n={n} of {len(pools[0][1])}: lower n")
    drawn: list[list[Tensor]] = [[], [], [], []]
    for _ in range(runs):
        order = torch.randperm(len(pools[0][1]), generator=generator)
        x, y = (part[order[:n]] for part in pools[0])
        if len(pools) == 1:
            x_test, y_test = (part[order[n : n + n_test]] for part in pools[0])
        else:
            held = torch.randperm(len(pools[1][1]), generator=generator)[:n_test]
            x_test, y_test = (part[held] for part in pools[1])
        centre = x.mean(0)
        scale = x.std(0).clamp_min(1e-12) if isinstance(data, TableData) else torch.ones_like(centre)
        shrink = 3 if isinstance(data, TableData) else 1
        rows = [F.pad((part - centre) / scale, (0, 1), value=1.0) / shrink for part in (x, x_test)]
        for kept, new in zip(drawn, (rows[0], y, rows[1], y_test), strict=True):
            kept.append(new)
    return BinaryProblems(*(torch.stack(kept) for kept in drawn))


def _two_classes(data: TableData | ImageData, classes: tuple[int, int], size: int) -> tuple[Tensor, Tensor]:
    """Features and signs of the examples of the two classes."""
    is_member = torch.isin(data.labels, torch.tensor(classes))
    y = 2.0 * (data.labels[is_member] == classes[0]).double() - 1
    if isinstance(data, TableData):
        return data.x[is_member, :size].double(), y
    return F.adaptive_avg_pool2d(data.images[is_member].double(), size).flatten(1), y


def box_noise(
    x: Float[Tensor, "runs n d"], epsilon: float, *, generator: torch.Generator, n_fixed: int = 1
) -> Float[Tensor, "runs n d"]:
    r"""Examples moved uniformly inside the box of radius $\epsilon$; the last `n_fixed` features stay."""
    noise = epsilon * (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device) - 1)
    return x + F.pad(noise[..., : x.shape[-1] - n_fixed], (0, n_fixed))
