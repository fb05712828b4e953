"""What a scene of `scenes` consists of: factors of objects, background, style and camera, and how to draw them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "white")
TEXTURES = ("solid", "striped", "checked", "dotted")
BACKGROUNDS = ("plain", "gradient", "noise", "photo")
STYLES = ("flat", "sketch", "noisy", "inverted", "dim", "blurred")
MAX_OBJECTS = 5


@dataclass(frozen=True)
class SceneFactors:
    """Everything that determines the pixels of n pictures with at most o objects.

    World coordinates: x to the right, y down, the picture spans [-1, 1] when the camera is at rest. Objects are
    drawn in order, later ones in front.

    Args:
        present: which of the o slots hold an object.
        shapes: index into `SHAPES`.
        colours: index into `COLOURS`.
        textures: index into `TEXTURES`.
        centres: x and y in world coordinates.
        scales: radius in world coordinates.
        rotations: in radians, clockwise.
        stretches: width over height of the object's frame, 1 is undistorted.
        backgrounds: index into `BACKGROUNDS`.
        paints: two colours of the background, RGB in [0, 1].
        crops: where in a photograph, or in the noise field, the background lies, in [0, 1].
        photos: which of the photographs given to the renderer.
        styles: index into `STYLES`.
        cameras: shift x, shift y (world units), rotation (radians), zoom (1 is at rest).
        seeds: of the pixel noise, whole numbers in [0, 2**31).
    """

    present: Bool[Tensor, "n o"]
    shapes: Int[Tensor, "n o"]
    colours: Int[Tensor, "n o"]
    textures: Int[Tensor, "n o"]
    centres: Float[Tensor, "n o 2"]
    scales: Float[Tensor, "n o"]
    rotations: Float[Tensor, "n o"]
    stretches: Float[Tensor, "n o"]
    backgrounds: Int[Tensor, " n"]
    paints: Float[Tensor, "n 2 3"]
    crops: Float[Tensor, "n 2"]
    photos: Int[Tensor, " n"]
    styles: Int[Tensor, " n"]
    cameras: Float[Tensor, "n 4"]
    seeds: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.styles)

    def subset(self, index: Int[Tensor, " m"]) -> "SceneFactors":
        """The factors at `index`, in that order; rendering them gives those very pictures."""
        return replace(self, **{field.name: getattr(self, field.name)[index] for field in fields(self)})


def choices(names: Sequence[str] | None, valid: tuple[str, ...], what: str) -> Int[Tensor, " k"]:
    """Indices of `names` in `valid`; all of them if `names` is None.

    Raises:
        ValueError: an unknown name, or none.
    """
    if names is None:
        return torch.arange(len(valid))
    for name in names:
        if name not in valid:
            raise ValueError(f"{what} must be among {', '.join(valid)}; got {name!r}")
    if not names:
        raise ValueError(f"{what} must name at least one of {', '.join(valid)}, got none")
    return torch.tensor([valid.index(name) for name in names])


def sample_factors(
    n: int,
    *,
    n_objects: tuple[int, int] = (1, 5),
    shapes: Sequence[str] | None = None,
    colours: Sequence[str] | None = None,
    textures: Sequence[str] | None = None,
    backgrounds: Sequence[str] | None = None,
    styles: Sequence[str] | None = ("flat",),
    scales: tuple[float, float] = (0.2, 0.4),
    max_degrees: float = 15.0,
    max_stretch: float = 1.0,
    n_photos: int = 1,
    generator: torch.Generator,
) -> SceneFactors:
    """Independent uniform factors; positions are chosen so that objects overlap little.

    Args:
        n: number of scenes.
        n_objects: smallest and largest number of objects, 0 to 5.
        shapes: names to draw from; all by default, and likewise for the other lists.
        colours: of the objects.
        textures: of the objects.
        backgrounds: kinds of background.
        styles: style domains.
        scales: smallest and largest radius; half the picture is 1.
        max_degrees: largest rotation of an object.
        max_stretch: largest distortion; 1.5 draws width over height from [1 / 1.5, 1.5].
        n_photos: number of photographs to choose from.
        generator: source of randomness.

    Raises:
        ValueError: a value out of range or an unknown name.
    """
    low, high = n_objects
    if not 0 <= low <= high <= MAX_OBJECTS:
        raise ValueError(f"n_objects must satisfy 0 <= smallest <= largest <= {MAX_OBJECTS}, got {n_objects}")
    if not 0.02 <= scales[0] <= scales[1] <= 0.95:
        raise ValueError(f"scales must satisfy 0.02 <= smallest <= largest <= 0.95, got {scales}")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if not 0 <= max_degrees <= 180:
        raise ValueError(f"max_degrees must be in [0, 180], got {max_degrees}")
    if not 1 <= max_stretch <= 3:
        raise ValueError(f"max_stretch must be in [1, 3], got {max_stretch}")
    o = max(high, 1)

    def pick(names: Sequence[str] | None, valid: tuple[str, ...], what: str, *shape: int) -> Tensor:
        index = choices(names, valid, what)
        return index[torch.randint(len(index), shape, generator=generator)]

    def uniform(*shape: int, between: tuple[float, float] = (0.0, 1.0)) -> Tensor:
        return torch.rand(shape, generator=generator) * (between[1] - between[0]) + between[0]

    counts = torch.randint(low, high + 1, (n,), generator=generator)
    radii = uniform(n, o, between=scales)
    turn = torch.pi * max_degrees / 180
    return SceneFactors(
        present=torch.arange(o) < counts[:, None],
        shapes=pick(shapes, SHAPES, "shapes", n, o),
        colours=pick(colours, COLOURS, "colours", n, o),
        textures=pick(textures, TEXTURES, "textures", n, o),
        centres=_place(radii, torch.arange(o) < counts[:, None], generator),
        scales=radii,
        rotations=uniform(n, o, between=(-turn, turn)),
        stretches=max_stretch ** uniform(n, o, between=(-1.0, 1.0)),
        backgrounds=pick(backgrounds, BACKGROUNDS, "backgrounds", n),
        paints=uniform(n, 2, 3, between=(0.05, 0.45)),
        crops=uniform(n, 2),
        photos=torch.randint(n_photos, (n,), generator=generator),
        styles=pick(styles, STYLES, "styles", n),
        cameras=torch.tensor([0.0, 0.0, 0.0, 1.0]).repeat(n, 1),
        seeds=torch.randint(2**31, (n,), generator=generator),
    )


def _place(
    radii: Float[Tensor, "n o"], present: Bool[Tensor, "n o"], generator: torch.Generator, tries: int = 24
) -> Float[Tensor, "n o 2"]:
    """Centres inside the picture; of `tries` proposals the one with the widest gap between two objects."""
    n, o = radii.shape
    room = (1 - radii).clamp(min=0.02)[:, None, :, None]
    proposals = (torch.rand((n, tries, o, 2), generator=generator) * 2 - 1) * room
    gaps = (proposals[:, :, :, None] - proposals[:, :, None]).norm(dim=-1)
    gaps = gaps - (radii[:, None, :, None] + radii[:, None, None])
    pairs = present[:, :, None] & present[:, None] & ~torch.eye(o, dtype=torch.bool)
    gaps = gaps.masked_fill(~pairs[:, None], torch.inf).flatten(2).min(2).values
    gaps = gaps.clamp(max=0.1)  # wide enough; ties keep the first proposal, so pictures are not all spread out
    return proposals[torch.arange(n), gaps.argmax(1)]


def look_again(
    factors: SceneFactors,
    n_views: int,
    *,
    max_shift: float = 0.2,
    max_degrees: float = 20.0,
    max_zoom: float = 1.25,
    generator: torch.Generator,
) -> SceneFactors:
    """Every scene from `n_views` random cameras; the views of a scene follow each other.

    Args:
        factors: the scenes.
        n_views: pictures per scene.
        max_shift: largest shift of the camera in world units.
        max_degrees: largest rotation of the camera.
        max_zoom: zoom is drawn from [1 / max_zoom, max_zoom].
        generator: source of randomness.
    """
    if n_views < 1:
        raise ValueError(f"n_views must be at least 1, got {n_views}")
    m = len(factors) * n_views
    repeated = factors.subset(torch.arange(len(factors)).repeat_interleave(n_views))
    u = torch.rand((m, 4), generator=generator) * 2 - 1
    turn = torch.pi * max_degrees / 180
    cameras = torch.stack([u[:, 0] * max_shift, u[:, 1] * max_shift, u[:, 2] * turn, max_zoom ** u[:, 3]], dim=1)
    seeds = torch.randint(2**31, (m,), generator=generator)
    return replace(repeated, cameras=cameras, seeds=seeds)
