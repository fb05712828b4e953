r"""The paper's Gaussian simulation, and digits from two sources: labelled ones from one, unlabelled from another.

r independent problems, m labelled and n unlabelled examples, d inputs.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from glocal.data import load

SOURCES = ("same", "other", "mix25", "mix50", "mix75", "far")


@dataclass(frozen=True)
class Problem:
    """Labelled and unlabelled inputs of several independent problems, with the mean that defines their accuracy."""

    x: Float[Tensor, "r m d"]
    y: Float[Tensor, "r m"]
    unlabelled: Float[Tensor, "r n d"]
    mean: Float[Tensor, "r d"]


def unit_vectors(shape: tuple[int, ...], *, generator: torch.Generator) -> Float[Tensor, "..."]:
    """Directions drawn uniformly from the sphere in the last axis."""
    v = torch.randn(shape, generator=generator, device=generator.device)
    return v / v.norm(dim=-1, keepdim=True)


def gaussian_problem(
    n_problems: int,
    *,
    d: int,
    m: int,
    n: int,
    alpha: float,
    sigma: float = 1.0,
    generator: torch.Generator,
) -> Problem:
    r"""Balanced mixtures $N(\pm\mu_0, \sigma^2I)$ with labels and $N(\pm\mu_1, \sigma^2I)$ without.

    $\mu_0$ is a random unit vector and $\mu_1 = \mu_0 + \alpha v$ with a random unit vector $v$.

    Args:
        n_problems: independent draws r.
        d: dimension.
        m: labelled points, half of them of each sign.
        n: unlabelled points.
        alpha: length of the shift.
        sigma: standard deviation of the noise.
        generator: source of randomness; the result lies on its device.

    Raises:
        ValueError: if m is odd or not positive.

    Source: the simulation; its noise level is inferred from the accuracy of ten thousand labels.
    """
    if m < 2 or m % 2:
        raise ValueError(f"m must be even and positive, got {m}: both signs get the same number of labels")
    mean = unit_vectors((n_problems, d), generator=generator)
    shifted = mean + alpha * unit_vectors((n_problems, d), generator=generator)
    y = torch.tensor([1.0, -1.0], device=generator.device).repeat(m // 2).expand(n_problems, m)
    noise = torch.randn(n_problems, m + n, d, generator=generator, device=generator.device) * sigma
    signs = 2.0 * torch.randint(2, (n_problems, n), generator=generator, device=generator.device) - 1
    x = y[..., None] * mean[:, None] + noise[:, :m]
    return Problem(x, y, signs[..., None] * shifted[:, None] + noise[:, m:], mean)


@dataclass(frozen=True)
class ImagePool:
    """Images of one source as rows of p pixels in [0, 1], with the class of each."""

    pixels: Float[Tensor, "n p"]
    classes: Int[Tensor, " n"]


def digit_pools(labelled_from: str, unlabelled_from: str, *, fake: bool = False) -> tuple[ImagePool, ImagePool]:
    """Two sources of digits on one 8x8 raster.

    `optdigits` counts ink in 4x4 blocks, 0 to 16. Images of any other set are padded to a multiple of eight and
    averaged over blocks: the same raster, other writers, another scanner.

    Args:
        labelled_from: source of labelled and test images.
        unlabelled_from: the other source.
        fake: random stand-ins.
    """
    return _pool(labelled_from, fake=fake), _pool(unlabelled_from, fake=fake)


def _pool(name: str, *, fake: bool) -> ImagePool:
    data = load(name, fake=fake)
    if name == "optdigits":
        return ImagePool(data.x / 16, data.labels)
    images = data.images.mean(1, keepdim=True)
    side = images.shape[-1]
    pad = (-side) % 8 // 2
    images = F.avg_pool2d(F.pad(images, (pad, pad, pad, pad)), (side + 2 * pad) // 8)
    return ImagePool(images.flatten(1), data.labels)


@dataclass(frozen=True)
class ImageTask:
    """Binary tasks on images: one problem per seed."""

    x: Float[Tensor, "r m d"]
    y: Float[Tensor, "r m"]
    unlabelled: dict[str, Float[Tensor, "r n d"]]
    x_test: Float[Tensor, "r t d"]
    y_test: Float[Tensor, "r t"]


def image_task(
    pools: tuple[ImagePool, ImagePool],
    positive: list[int],
    negative: list[int],
    *,
    m: int,
    n: int,
    n_test: int,
    generators: list[torch.Generator],
) -> ImageTask:
    """Labelled, unlabelled and test images of a binary task, disjoint within a problem.

    Unlabelled sets, by name: `same` source, the `other` source, mixtures (`mix25` has a quarter from the other) and
    `far`, images of the same source that belong to neither class (any of the other source where none is left). All
    are centred by the mean pixels of the m + n images of the first source and divided by one number, their standard
    deviation over all pixels.

    Args:
        pools: source of the labelled and test images; the other source.
        positive: classes with label 1.
        negative: classes with label -1.
        m: labels, half per class.
        n: unlabelled images in each set.
        n_test: test images.
        generators: one per problem.

    Raises:
        ValueError: if a class has too few images.
    """
    problems = [_draw(pools, positive, negative, m, n, n_test, generator) for generator in generators]
    for problem in problems:
        reference = torch.cat([problem["x"], problem["same"]])
        center = reference.mean(0)
        scale = (reference - center).square().mean().sqrt()
        for name in ("x", "x_test", *SOURCES):
            problem[name] = (problem[name] - center) / scale
    stacked = {name: torch.stack([problem[name] for problem in problems]) for name in problems[0]}
    unlabelled = {name: stacked[name] for name in SOURCES}
    return ImageTask(stacked["x"], stacked["y"], unlabelled, stacked["x_test"], stacked["y_test"])


def _draw(
    pools: tuple[ImagePool, ImagePool],
    positive: list[int],
    negative: list[int],
    m: int,
    n: int,
    n_test: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Pixels and labels of one problem, by name."""
    order = [torch.randperm(len(pool.classes), generator=generator) for pool in pools]
    members = [
        [index[torch.isin(pool.classes[index], torch.tensor(group))] for group in (positive, negative)]
        for pool, index in zip(pools, order, strict=True)
    ]
    needed = (m // 2 + n // 2 + n_test // 2, n // 2)
    for row, least in zip(members, needed, strict=True):
        for digits, index in zip((positive, negative), row, strict=True):
            if len(index) < least:
                raise ValueError(
                    f"digits {digits} have {len(index)} images in a source, {least} are needed: ask for less"
                )
    sizes = [m // 2, n // 2, n_test // 2]

    def both(pool: int, start: int, stop: int) -> Tensor:
        return torch.cat([pools[pool].pixels[index[start:stop]] for index in members[pool]])

    ends = [0, sizes[0], sizes[0] + sizes[1], sum(sizes)]
    same, other = both(0, ends[1], ends[2]), both(1, 0, sizes[1])
    used = torch.tensor([*positive, *negative])
    far = pools[0].pixels[order[0][~torch.isin(pools[0].classes[order[0]], used)]][: len(same)]
    if len(far) < len(same):
        far = pools[1].pixels[order[1]][: len(same)]
    parts = {"x": both(0, 0, ends[1]), "x_test": both(0, ends[2], ends[3]), "same": same, "other": other, "far": far}
    for share in (25, 50, 75):
        swap = torch.randperm(len(same), generator=generator)[: len(same) * share // 100]
        mixed = same.clone()
        mixed[swap] = other[swap]
        parts[f"mix{share}"] = mixed
    for name, size in (("y", sizes[0]), ("y_test", sizes[2])):
        parts[name] = torch.tensor([1.0, -1.0]).repeat_interleave(size)
    return parts
