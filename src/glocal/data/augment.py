"""Random geometric changes of pictures, drawn from a generator."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def jitter(
    images: Float[Tensor, "n c h w"],
    *,
    max_degrees: float = 10.0,
    max_shift: float = 0.07,
    max_scale: float = 0.1,
    generator: torch.Generator,
) -> Float[Tensor, "n c h w"]:
    """Rotate, scale and shift every picture at random, with bilinear interpolation and empty borders.

    Args:
        images: square or oblong pictures; 0 is the colour of the border.
        max_degrees: largest rotation, in degrees.
        max_shift: largest shift, as a share of the side.
        max_scale: largest relative change of size.
        generator: source of randomness, on the device of `images`.

    Raises:
        ValueError: a limit is negative or not finite.
    """
    for name, value in (("max_degrees", max_degrees), ("max_shift", max_shift), ("max_scale", max_scale)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
    n = len(images)
    u = torch.rand((n, 4), generator=generator, device=images.device, dtype=images.dtype) * 2 - 1
    angle, scale = u[:, 0] * math.radians(max_degrees), 1 / (1 + u[:, 1] * max_scale)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    aspect = images.shape[-2] / images.shape[-1]  # keeps rotations rigid in oblong pictures
    theta = torch.stack(
        [cos, -sin * aspect, 2 * max_shift * u[:, 2], sin / aspect, cos, 2 * max_shift * u[:, 3]], dim=1
    )
    grid = F.affine_grid(theta.view(n, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).clamp_(0, 1)
