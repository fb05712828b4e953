"""From `SceneFactors` to pixels: shapes, textures, backgrounds, styles; pure functions without randomness.

Coordinates are world coordinates of `SceneFactors`; sizes in pixels only enter through the smoothing of edges.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glocal.data.scene_factors import BACKGROUNDS, SHAPES, STYLES, TEXTURES, SceneFactors

PALETTE = torch.tensor(
    [
        [0.90, 0.15, 0.15],  # red
        [0.15, 0.70, 0.20],  # green
        [0.20, 0.35, 0.95],  # blue
        [0.98, 0.88, 0.15],  # yellow
        [0.60, 0.20, 0.75],  # purple
        [1.00, 0.55, 0.05],  # orange
        [0.15, 0.85, 0.90],  # cyan
        [0.97, 0.97, 0.97],  # white
    ]
)


def render(
    factors: SceneFactors, size: int, photos: tuple[Float[Tensor, "3 _ _"], ...] = ()
) -> tuple[Float[Tensor, "n 3 size size"], Bool[Tensor, "n o size size"]]:
    """Pictures and the visible part of every object.

    Memory: about 60 bytes per pixel and object slot; render in parts for large `n`.

    Args:
        factors: the scenes.
        size: side of the square pictures in pixels.
        photos: photographs for backgrounds of the kind `photo`.

    Raises:
        ValueError: a background needs a photograph that is not given.
    """
    needed = factors.photos[factors.backgrounds == BACKGROUNDS.index("photo")]
    if len(needed) and int(needed.max()) >= len(photos):
        raise ValueError(f"photos must hold at least {int(needed.max()) + 1} photographs, got {len(photos)}")
    x, y = _world(factors, size)
    pictures = _backgrounds(factors, x, y, photos)
    n, o = factors.present.shape
    owner = torch.full((n, size, size), -1)
    for k in range(o):  # painter's algorithm, later objects in front
        cover, shade = _object(factors, k, x, y, size)
        colour = PALETTE[factors.colours[:, k]][:, :, None, None] * shade[:, None]
        pictures = pictures + cover[:, None] * (colour - pictures)
        owner = torch.where(cover > 0.5, k, owner)
    masks = owner[:, None] == torch.arange(o)[:, None, None]
    return apply_styles(pictures.clamp(0, 1), factors.styles, factors.seeds), masks


def _world(factors: SceneFactors, size: int) -> tuple[Float[Tensor, "n h w"], Float[Tensor, "n h w"]]:
    """World coordinates of every pixel's centre, seen through the camera."""
    line = (torch.arange(size) + 0.5) / size * 2 - 1
    v, u = torch.meshgrid(line, line, indexing="ij")
    shift_x, shift_y, turn, zoom = (c[:, None, None] for c in factors.cameras.unbind(1))
    cos, sin = turn.cos() / zoom, turn.sin() / zoom
    return cos * u - sin * v + shift_x, sin * u + cos * v + shift_y


def _object(
    factors: SceneFactors, k: int, x: Float[Tensor, "n h w"], y: Float[Tensor, "n h w"], size: int
) -> tuple[Float[Tensor, "n h w"], Float[Tensor, "n h w"]]:
    """Coverage in [0, 1] of the objects in slot `k`, with smooth edges, and the brightness of their texture."""
    centre, scale = factors.centres[:, k], factors.scales[:, k]
    cos, sin = factors.rotations[:, k].cos()[:, None, None], factors.rotations[:, k].sin()[:, None, None]
    dx, dy = x - centre[:, 0, None, None], y - centre[:, 1, None, None]
    stretch = factors.stretches[:, k].sqrt()[:, None, None]
    u = (cos * dx + sin * dy) / (scale[:, None, None] * stretch)
    v = (cos * dy - sin * dx) / scale[:, None, None] * stretch
    cover, shade = torch.zeros_like(x), torch.ones_like(x)
    for shape in range(len(SHAPES)):
        chosen = (factors.present[:, k] & (factors.shapes[:, k] == shape)).nonzero().squeeze(1)
        if len(chosen):
            distance = signed_distance(SHAPES[shape], u[chosen], v[chosen])
            pixels = scale[chosen] * factors.cameras[chosen, 3] * size / 2  # of one unit of the object's frame
            cover[chosen] = (0.5 - distance * pixels[:, None, None]).clamp_(0, 1)
    for texture in range(1, len(TEXTURES)):
        chosen = (factors.present[:, k] & (factors.textures[:, k] == texture)).nonzero().squeeze(1)
        if len(chosen):
            shade[chosen] = texture_shade(TEXTURES[texture], u[chosen], v[chosen])
    return cover, shade


def signed_distance(shape: str, u: Float[Tensor, "n h w"], v: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """Approximate distance to the outline of a shape of radius one, negative inside; v points down."""
    r = (u.square() + v.square()).sqrt()
    match shape:
        case "circle":
            return r - 0.9
        case "square":
            return torch.maximum(u.abs(), v.abs()) - 0.78
        case "triangle":
            return torch.maximum(v - 0.6, 0.866 * u.abs() - 0.5 * v - 0.45)
        case "star":
            sector = torch.pi / 5
            angle = torch.atan2(u, -v).abs()  # 0 at the tip that points up
            angle = sector - (angle % (2 * sector) - sector).abs()  # from the nearest tip, at most one sector
            return 0.384 * (r * angle.cos() - 0.95) + 0.923 * r * angle.sin()
        case "cross":
            bar = torch.maximum(u.abs() - 0.9, v.abs() - 0.3)
            return torch.minimum(bar, torch.maximum(v.abs() - 0.9, u.abs() - 0.3))
        case "ring":
            return (r - 0.68).abs() - 0.22
        case "heart":
            a, b = u.abs(), v + 0.08
            lobes = ((a - 0.42).square() + (b + 0.3).square()).sqrt() - 0.46
            point = torch.maximum(0.74 * a + 0.672 * b - 0.55, -b - 0.3)
            middle = torch.maximum(a - 0.42, (b + 0.12).abs() - 0.32)  # so that the seams lie inside
            return torch.minimum(torch.minimum(lobes, point), middle)
        case "crescent":
            bite = ((u - 0.48).square() + v.square()).sqrt() - 0.66
            return torch.maximum(r - 0.9, -bite)
    raise ValueError(f"shape must be among {', '.join(SHAPES)}, got {shape!r}")


def texture_shade(texture: str, u: Float[Tensor, "n h w"], v: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """Brightness factor of a texture in the object's own frame: 1, or 0.35 in its dark parts."""
    match texture:
        case "solid":
            dark = torch.zeros_like(u, dtype=torch.bool)
        case "striped":
            dark = (v * 2.5).floor() % 2 == 0
        case "checked":
            dark = ((u * 2.2 + 0.5).floor() + (v * 2.2 + 0.5).floor()) % 2 == 0
        case "dotted":
            a, b = (u * 2 + 0.5) % 1 - 0.5, (v * 2 + 0.5) % 1 - 0.5
            dark = a.square() + b.square() < 0.08
        case _:
            raise ValueError(f"texture must be among {', '.join(TEXTURES)}, got {texture!r}")
    return 1 - 0.65 * dark.float()


def _backgrounds(
    factors: SceneFactors,
    x: Float[Tensor, "n h w"],
    y: Float[Tensor, "n h w"],
    photos: tuple[Float[Tensor, "3 _ _"], ...],
) -> Float[Tensor, "n 3 h w"]:
    first, second = factors.paints[:, 0, :, None, None], factors.paints[:, 1, :, None, None]
    mix = torch.zeros_like(x)
    gradient = (factors.backgrounds == BACKGROUNDS.index("gradient")).nonzero().squeeze(1)
    angle = (factors.crops[gradient, 0] * 2 * torch.pi)[:, None, None]
    mix[gradient] = (0.5 + 0.5 * (angle.cos() * x[gradient] + angle.sin() * y[gradient])).clamp(0, 1)
    noise = (factors.backgrounds == BACKGROUNDS.index("noise")).nonzero().squeeze(1)
    origin = factors.crops[noise] * 4096
    fields = [
        smooth_noise(x[noise] * f + origin[:, 0, None, None], y[noise] * f + origin[:, 1, None, None]) for f in (3, 9)
    ]
    mix[noise] = 0.65 * fields[0] + 0.35 * fields[1]
    pictures = first + mix[:, None] * (second - first)
    photo = factors.backgrounds == BACKGROUNDS.index("photo")
    for p, picture in enumerate(photos):
        chosen = (photo & (factors.photos == p)).nonzero().squeeze(1)
        if len(chosen):
            pictures[chosen] = _crop(picture, factors.crops[chosen], x[chosen], y[chosen])
    return pictures


def _crop(
    photo: Float[Tensor, "3 ph pw"], crops: Float[Tensor, "n 2"], x: Float[Tensor, "n h w"], y: Float[Tensor, "n h w"]
) -> Float[Tensor, "n 3 h w"]:
    """A window whose side is 45 % of the photograph's shorter one, dimmed to leave the objects visible."""
    height, width = photo.shape[1:]
    half = 0.45 * min(height, width)
    spans = [half / width, half / height]  # half the window in the photograph's own [-1, 1]
    shifted = [
        line * span + (crop[:, None, None] * 2 - 1) * (1 - span)
        for line, span, crop in zip((x, y), spans, crops.unbind(1), strict=True)
    ]
    grid = torch.stack(shifted, dim=-1)
    batch = photo.expand(len(grid), -1, -1, -1)
    return 0.75 * F.grid_sample(batch, grid, padding_mode="reflection", align_corners=False)


def smooth_noise(x: Float[Tensor, "n h w"], y: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """Value noise: hashed values in [0, 1) at whole coordinates, interpolated smoothly between them."""
    x0, y0 = x.floor(), y.floor()
    tx, ty = (t * t * (3 - 2 * t) for t in (x - x0, y - y0))
    i, j = x0.long(), y0.long()
    top = hashed(i, j) * (1 - tx) + hashed(i + 1, j) * tx
    bottom = hashed(i, j + 1) * (1 - tx) + hashed(i + 1, j + 1) * tx
    return top * (1 - ty) + bottom * ty


def hashed(*keys: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
    """A number in [0, 1) that depends on whole numbers alone: noise without a generator (32-bit mixing)."""
    mask = 0xFFFFFFFF
    state = torch.full_like(torch.broadcast_tensors(*keys)[0], 0x9E3779B9)
    for key in keys:
        state = (state ^ key) & mask
        state = ((state ^ (state >> 16)) * 0x45D9F3B) & mask
        state = ((state ^ (state >> 16)) * 0x45D9F3B) & mask
        state = state ^ (state >> 16)
    return (state >> 8).float() / 2**24


def apply_styles(
    pictures: Float[Tensor, "n 3 h w"], styles: Int[Tensor, " n"], seeds: Int[Tensor, " n"]
) -> Float[Tensor, "n 3 h w"]:
    """Redraw every picture in its style domain."""
    result = pictures.clone()
    for style in styles.unique().tolist():
        chosen = (styles == style).nonzero().squeeze(1)
        result[chosen] = _style(STYLES[style], pictures[chosen], seeds[chosen])
    return result


def _style(style: str, pictures: Float[Tensor, "n 3 h w"], seeds: Int[Tensor, " n"]) -> Float[Tensor, "n 3 h w"]:
    match style:
        case "sketch":  # dark strokes where the picture changes, on paper
            padded = F.pad(pictures, (1, 1, 1, 1), mode="replicate")
            across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]).abs()
            down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]).abs()
            return (0.97 - 1.6 * (across + down).mean(1, keepdim=True)).clamp(0, 1).expand_as(pictures)
        case "noisy":
            shape = pictures.shape
            index = torch.arange(shape[1] * shape[2] * shape[3]).view(1, *shape[1:])
            noise = sum(hashed(seeds.view(-1, 1, 1, 1), index, torch.tensor(k)) for k in range(3))
            return (pictures + 0.24 * (noise - 1.5)).clamp(0, 1)  # standard deviation 0.12
        case "inverted":
            return 1 - pictures
        case "dim":
            return 0.04 + 0.3 * pictures
        case "blurred":
            line = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
            kernel = torch.outer(line, line).expand(3, 1, 5, 5)
            return F.conv2d(F.pad(pictures, (2, 2, 2, 2), mode="replicate"), kernel, groups=3)
    return pictures
