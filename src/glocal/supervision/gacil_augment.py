"""Augmentation of a batch of small images on the device where it lives; n images."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

N_TRIVIAL_OPS = 14


def crop_and_flip(
    images: Float[Tensor, "n c h w"], *, padding: int = 4, generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """A random window of each zero-padded image, mirrored with probability one half."""
    n, _, h, w = images.shape
    shift = torch.randint(0, 2 * padding + 1, (2, n), generator=generator).to(images.device)
    flip = (torch.rand(n, generator=generator) < 0.5).to(images.device)
    rows = torch.arange(h, device=images.device) + shift[0, :, None]
    columns = torch.arange(w, device=images.device).expand(n, w)
    columns = torch.where(flip[:, None], columns.flip(1), columns) + shift[1, :, None]
    padded = F.pad(images, (padding,) * 4)
    each = torch.arange(n, device=images.device)[:, None, None]
    return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def trivial_augment(images: Float[Tensor, "n c h w"], *, generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    r"""TrivialAugment, wide: one random operation of random strength per image, computed for the whole batch at once.

    Fourteen operations: identity, four shears and shifts, rotation, brightness, colour, contrast, sharpness,
    posterise, solarise, auto-contrast, equalise. Strengths are uniform up to 0.99 for shears and enhancements, 32
    pixels for shifts, 135 degrees for rotation, 2 bits for posterise.

    Args:
        images: pixels in [0, 1].
        generator: on the CPU.

    Source: Müller and Hutter, "TrivialAugment", ICCV 2021, Table 1, wide search space.
    """
    n = len(images)
    op = torch.randint(0, N_TRIVIAL_OPS, (n,), generator=generator).to(images.device)
    strength = torch.rand(n, generator=generator).to(images.device)
    sign = (2.0 * torch.randint(0, 2, (n,), generator=generator) - 1).to(images.device)
    out = _warp(images, op, strength * sign)
    gray = out.mean(1, keepdim=True).expand_as(out)
    flat = gray.mean(dim=(2, 3), keepdim=True).expand_as(out)
    blurred = F.avg_pool2d(F.pad(out, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    amount = (1 + 0.99 * strength * sign)[:, None, None, None]
    low, high = out.amin(dim=(2, 3), keepdim=True), out.amax(dim=(2, 3), keepdim=True)
    levels = 2 ** (8 - (6 * strength).round()).clamp(min=4)[:, None, None, None]
    choices = {
        6: out * amount,  # brightness
        7: gray + amount * (out - gray),  # colour
        8: flat + amount * (out - flat),  # contrast
        9: blurred + amount * (out - blurred),  # sharpness
        10: (out * levels).floor() / levels,  # posterise
        11: torch.where(out < 1 - strength[:, None, None, None], out, 1 - out),  # solarise
        12: (out - low) / (high - low).clamp(min=1e-3),  # auto-contrast
        13: _equalize(out),
    }
    for kind, changed in choices.items():
        out = torch.where((op == kind)[:, None, None, None], changed, out)
    return out.clamp(0, 1)


def _warp(
    images: Float[Tensor, "n c h w"], op: Int[Tensor, " n"], amount: Float[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """Operations 1-5: shear and shift along both axes, rotation; the identity for all others."""
    size = images.shape[-1]
    angle = amount * (op == 5) * (135 * torch.pi / 180)
    shear_x, shear_y = 0.99 * amount * (op == 1), 0.99 * amount * (op == 2)
    shift_x, shift_y = (64 / size * amount * (op == kind) for kind in (3, 4))  # grid units: the image is 2 wide
    rows = [
        torch.stack([angle.cos(), shear_x - angle.sin(), shift_x], dim=1),
        torch.stack([shear_y + angle.sin(), angle.cos(), shift_y], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _equalize(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Map each channel's grey values to their cumulative frequencies (256 bins)."""
    n, c, h, w = images.shape
    bins = (images.clamp(0, 1) * 255).round().long().reshape(n * c, h * w)
    histogram = torch.zeros(n * c, 256, device=images.device)
    histogram.scatter_add_(1, bins, torch.ones(n * c, h * w, device=images.device))
    return (histogram.cumsum(1) / (h * w)).gather(1, bins).reshape(n, c, h, w)
