"""Images with one moving signal in noise, synthetic and real, and references (Lahoti et al. 2024, arXiv:2403.15707).

Sizes: `runs` independent data sets, `n` images, `k` patches per image, `d` pixels per patch.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glocal.data.types import ImageData


@dataclass(frozen=True)
class PatchData:
    r"""Images as rows of patches, $x = (x^{(1)}, \dots, x^{(k)})$, with targets $y = \pm1$."""

    x: Float[Tensor, "runs n k d"]
    y: Float[Tensor, "runs n"]

    def __len__(self) -> int:
        return self.y.shape[1]

    def first(self, n: int) -> "PatchData":
        """The first `n` images of every run, so that training sets of growing size are nested."""
        return PatchData(self.x[:, :n], self.y[:, :n])

    def take(self, index: Int[Tensor, " some"]) -> "PatchData":
        """Some of the runs."""
        return PatchData(self.x[index], self.y[index])

    def to(self, dtype: torch.dtype) -> "PatchData":
        """The same images in another floating-point format."""
        return PatchData(self.x.to(dtype), self.y.to(dtype))


def random_signals(
    runs: int, d: int, *, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "runs d"]:
    r"""Unknown signals $w^\star$, uniform on the unit sphere."""
    w = torch.randn((runs, d), generator=generator, device=generator.device, dtype=dtype)
    return w / w.norm(dim=-1, keepdim=True)


def moving_signal(
    signal: Float[Tensor, "runs d"],
    n: int,
    k: int,
    sigma: float,
    *,
    generator: torch.Generator,
    is_static: bool = False,
) -> PatchData:
    r"""The dynamic signal distribution $x = y\,\mu_t + \sigma\xi$, where $\mu_t$ is $w^\star$ in patch $t$, else zero.

    Args:
        signal: $w^\star$ of each run.
        n: images per run.
        k: patches; the position $t$ is uniform on them.
        sigma: standard deviation of the noise in every pixel, the signal's patch included.
        generator: draws labels, positions and noise; on the device of `signal`.
        is_static: keep the signal in the first patch (the static task of the lower bounds).

    Raises:
        ValueError: if `sigma` is negative, or `n` or `k` not positive.

    Source: definition of the DSD and SSD tasks.
    """
    if sigma < 0 or n < 1 or k < 1:
        raise ValueError(f"moving_signal needs sigma >= 0, n >= 1 and k >= 1, got sigma={sigma}, n={n}, k={k}")
    runs, d = signal.shape
    options: dict[str, Any] = {"generator": generator, "device": generator.device}
    y = 2 * torch.randint(2, (runs, n), **options).to(signal.dtype) - 1
    positions = torch.randint(k, (runs, n), **options)
    if is_static:
        positions = torch.zeros_like(positions)
    x = sigma * torch.randn((runs, n, k, d), dtype=signal.dtype, **options)
    return PatchData(paste(x, y[..., None] * signal[:, None], positions), y)


def paste(
    x: Float[Tensor, "runs n k d"], patches: Float[Tensor, "runs n d"], positions: Int[Tensor, "runs n"]
) -> Float[Tensor, "runs n k d"]:
    """Add to every image of `x` its entry of `patches`, at the patch given by `positions`."""
    index = positions[..., None, None].expand(*positions.shape, 1, x.shape[-1])
    return x.scatter_add(2, index, patches[:, :, None])


def shifted_copies(data: PatchData) -> PatchData:
    """Every image at all `k` cyclic shifts of its patches: what weight sharing would know, bought with data."""
    k = data.x.shape[2]
    x = torch.stack([data.x.roll(s, dims=2) for s in range(k)], 2).flatten(1, 2)
    return PatchData(x, data.y.repeat_interleave(k, dim=1))


def bayes_outputs(data: PatchData, signal: Float[Tensor, "runs d"], sigma: float) -> Float[Tensor, "runs n"]:
    r"""Log odds of $y = 1$ for an observer who knows $w^\star$ but not where it is.

    $\log\sum_s e^{\langle w^\star, x^{(s)}\rangle/\sigma^2}
    - \log\sum_s e^{-\langle w^\star, x^{(s)}\rangle/\sigma^2}$.
    """
    z = (data.x @ signal[:, None, :, None]).squeeze(-1) / sigma**2
    return z.logsumexp(-1) - (-z).logsumexp(-1)


def linear_oracle_outputs(data: PatchData, signal: Float[Tensor, "runs d"]) -> Float[Tensor, "runs n"]:
    r"""The best linear rule up to scale, $\sum_s \langle w^\star, x^{(s)}\rangle$."""
    return (data.x.sum(2) @ signal[..., None]).squeeze(-1)


def accuracy(outputs: Float[Tensor, "runs n"], y: Float[Tensor, "runs n"]) -> Float[Tensor, " runs"]:
    """Share of images whose output has the sign of the target."""
    return (outputs * y > 0).to(y.dtype).mean(1)


def centred_patches(data: ImageData, classes: tuple[int, int]) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
    """Images of two classes as patches that resemble the task's: class means at plus and minus a unit vector.

    The mid-point of the two class means is subtracted, and everything is divided by half of their distance.

    Args:
        data: images; every pixel of every channel becomes one coordinate.
        classes: the class with target +1, then the class with target -1.

    Returns:
        The patches and their targets.

    Raises:
        ValueError: if the classes are equal, or one of them has no image.
    """
    first, second = (data.labels == c for c in classes)
    if classes[0] == classes[1] or not first.any() or not second.any():
        raise ValueError(f"classes must be two different classes with at least one image each, got {classes}")
    flat = data.images.flatten(1)
    means = flat[first].mean(0), flat[second].mean(0)
    chosen = first | second
    patches = (flat[chosen] - (means[0] + means[1]) / 2) / ((means[0] - means[1]).norm() / 2)
    return patches, first[chosen].to(flat.dtype) * 2 - 1


def noisy_canvas(
    patches: Float[Tensor, "runs n d"],
    targets: Float[Tensor, "runs n"],
    k: int,
    sigma: float,
    *,
    generator: torch.Generator,
) -> PatchData:
    """Real patches, each in a random cell of an image of `k` cells, with noise everywhere.

    Args:
        patches: the content of the cells that carry the signal.
        targets: their targets.
        k: cells per image (nine for a 3 x 3 canvas).
        sigma: standard deviation of the noise in every pixel.
        generator: draws cells and noise; on the device of `patches`.
    """
    runs, n, d = patches.shape
    options: dict[str, Any] = {"generator": generator, "device": generator.device}
    positions = torch.randint(k, (runs, n), **options)
    x = sigma * torch.randn((runs, n, k, d), dtype=patches.dtype, **options)
    return PatchData(paste(x, patches, positions), targets)


def rotation_to_axis(signal: Float[Tensor, "runs d"]) -> Float[Tensor, "runs d d"]:
    r"""Orthogonal matrices $Q$ with $Qw^\star = e_1$ (Householder reflections)."""
    axis = torch.zeros_like(signal)
    axis[:, 0] = 1
    v = signal - axis
    v = v / v.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return torch.eye(signal.shape[1], dtype=signal.dtype, device=signal.device) - 2 * v[..., None] * v[:, None]


def rotated(data: PatchData, rotation: Float[Tensor, "runs d d"]) -> PatchData:
    """The same images with every patch rotated alike: a group element of all three networks."""
    return PatchData(data.x @ rotation[:, None].mT, data.y)
