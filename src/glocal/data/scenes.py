"""`scenes`: drawn pictures of objects with known class, colour, texture, place, style, masks, boxes and captions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glocal.data.entry import Entry
from glocal.data.photos import NATURAL, PHOTOS, fake_photos, load_photos
from glocal.data.scene_factors import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    STYLES,
    TEXTURES,
    SceneFactors,
    choices,
    look_again,
    sample_factors,
)
from glocal.data.scene_render import render
from glocal.data.types import ImageData
from glocal.seeding import torch_generator

CHUNK = 1024  # scenes rendered at a time, to bound the memory


@dataclass(frozen=True)
class SceneData:
    """Rendered scenes with everything that is known about them.

    Args:
        images: RGB in [0, 1].
        masks: visible pixels of the object in each slot.
        factors: what was drawn, see `SceneFactors`.
        places: the scene behind each picture; views of one scene share it.
    """

    images: Float[Tensor, "n 3 h w"]
    masks: Bool[Tensor, "n o h w"]
    factors: SceneFactors
    places: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, index: Int[Tensor, " m"]) -> "SceneData":
        """The pictures at `index`, in that order."""
        return replace(
            self,
            images=self.images[index],
            masks=self.masks[index],
            factors=self.factors.subset(index),
            places=self.places[index],
        )

    @property
    def visible(self) -> Bool[Tensor, "n o"]:
        """Which slots hold an object of which at least one pixel is seen."""
        return self.masks.flatten(2).any(2)

    def boxes(self) -> Float[Tensor, "n o 4"]:
        """Tight boxes x0, y0, x1, y1 of the visible pixels, in pixels, ends excluded; zeros where none is seen."""
        size = self.masks.shape[-1]
        edges = []
        for axis in (2, 3):  # occupied columns, then rows
            line = self.masks.any(axis).int()
            edges += [line.argmax(2), size - line.flip(2).argmax(2)]
        boxes = torch.stack([edges[0], edges[2], edges[1], edges[3]], dim=2).float()
        return boxes * self.visible[..., None]

    def segmentation(self) -> Int[Tensor, "n h w"]:
        """Class of every pixel: 0 for the background, 1 + shape for an object."""
        return (self.masks * (1 + self.factors.shapes)[:, :, None, None]).sum(1)

    def captions(self) -> tuple[str, ...]:
        """A sentence per scene: `a red circle left of a striped blue square`, or a list for other numbers of objects.

        With two objects the one further left (or above, if they differ more in height) comes first.
        """
        factors = self.factors
        words = torch.stack([factors.textures, factors.colours, factors.shapes], dim=2).tolist()
        centres, counts = factors.centres.tolist(), factors.present.sum(1).tolist()
        return tuple(
            _caption([_phrase(*w) for w in row[:count]], centre)
            for row, centre, count in zip(words, centres, counts, strict=True)
        )

    def as_images(self, *, by: Sequence[str] = ("shape",)) -> ImageData:
        """Pictures labelled by factors of the first object, with the style as domain.

        Args:
            by: any of `shape`, `colour`, `texture`; several give one class per combination.

        Raises:
            ValueError: an unknown factor, or scenes without an object.
        """
        tables = {"shape": SHAPES, "colour": COLOURS, "texture": TEXTURES}
        if not by or any(what not in tables for what in by):
            raise ValueError(f"by must name some of {', '.join(tables)}, got {tuple(by)}")
        if not bool(self.factors.present[:, 0].all()):
            raise ValueError("as_images needs at least one object in every scene: load with n_objects=(1, ...)")
        labels = torch.zeros(len(self), dtype=torch.long)
        names: tuple[str, ...] = ("",)
        for what in by:
            labels = labels * len(tables[what]) + getattr(self.factors, f"{what}s")[:, 0]
            names = tuple(f"{name} {value}".strip() for name in names for value in tables[what])
        return ImageData(self.images, labels, names, self.factors.styles, STYLES)


def _phrase(texture: int, colour: int, shape: int) -> str:
    words = [COLOURS[colour], SHAPES[shape]]
    if TEXTURES[texture] != "solid":
        words.insert(0, TEXTURES[texture])
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


def _caption(phrases: list[str], centres: list[list[float]]) -> str:
    if not phrases:
        return "an empty scene"
    if len(phrases) != 2:
        return " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))
    across, down = (centres[1][axis] - centres[0][axis] for axis in (0, 1))
    relation, distance = ("left of", across) if abs(across) >= abs(down) else ("above", down)
    first, second = phrases if distance >= 0 else phrases[::-1]
    return f"{first} {relation} {second}"


def render_scenes(factors: SceneFactors, size: int, photos: tuple[Float[Tensor, "3 _ _"], ...] = ()) -> SceneData:
    """Render factors of your own making, e.g. with correlated factors; see `render`."""
    parts = [
        render(factors.subset(index), size, photos) for index in torch.arange(len(factors)).split(CHUNK * 32 // size)
    ]
    images, masks = (torch.cat(part) for part in zip(*parts, strict=True))
    return SceneData(images, masks, factors, torch.arange(len(factors)))


def load_scenes(
    *,
    n: int = 2000,
    size: int = 32,
    seed: int = 0,
    n_objects: tuple[int, int] = (1, 5),
    shapes: Sequence[str] | None = None,
    colours: Sequence[str] | None = None,
    textures: Sequence[str] | None = None,
    backgrounds: Sequence[str] | None = None,
    styles: Sequence[str] | None = ("flat",),
    scales: tuple[float, float] = (0.2, 0.4),
    max_degrees: float = 15.0,
    max_stretch: float = 1.0,
    n_views: int = 1,
    photo_names: Sequence[str] | None = None,
) -> SceneData:
    """Random scenes; the same arguments give the same pictures.

    Args:
        n: number of scenes.
        size: side in pixels, 16 to 128.
        seed: of all factors.
        n_objects: smallest and largest number of objects, 0 to 5.
        shapes: some of `scene_factors.SHAPES`; None stands for all, likewise below.
        colours: some of `COLOURS`.
        textures: some of `TEXTURES`.
        backgrounds: some of `BACKGROUNDS`.
        styles: some of `STYLES`, the domains; only `flat` by default.
        scales: smallest and largest radius; half the picture is 1.
        max_degrees: largest rotation of an object.
        max_stretch: largest distortion of an object.
        n_views: pictures of each scene from random cameras, see `look_again`; 1 leaves the camera at rest.
        photo_names: photographs for the backgrounds; those of natural things by default.

    Raises:
        ValueError: an option out of range or an unknown name.
        DataError: scikit-image's photographs are missing or corrupt, if backgrounds use them.
    """
    options = {key: value for key, value in locals().items() if key not in ("size", "photo_names")}
    _check_size(size)
    photos: tuple[Tensor, ...] = ()
    if BACKGROUNDS.index("photo") in choices(backgrounds, BACKGROUNDS, "backgrounds"):
        photos = load_photos(names=tuple(photo_names or NATURAL), short_side=4 * size).images
    return _generate(size=size, photos=photos, **options)


def fake_scenes(*, size: int = 32, photo_names: Sequence[str] | None = None, **options: Any) -> SceneData:
    """The same scenes with noise in place of photographs; reads nothing from disk."""
    _check_size(size)
    photos = fake_photos(names=tuple(photo_names or NATURAL), short_side=4 * size).images
    return _generate(size=size, photos=photos, **options)


def _check_size(size: int) -> None:
    if not 16 <= size <= 128:
        raise ValueError(f"size must be between 16 and 128 pixels, got {size}")


def _generate(
    *, size: int, photos: tuple[Tensor, ...], n: int = 2000, seed: int = 0, n_views: int = 1, **options: Any
) -> SceneData:
    factors = sample_factors(
        n, n_photos=max(len(photos), 1), generator=torch_generator(seed, "scenes", "factors"), **options
    )
    if n_views != 1:
        factors = look_again(factors, n_views, generator=torch_generator(seed, "scenes", "cameras"))
    data = render_scenes(factors, size, photos)
    return replace(data, places=torch.arange(n).repeat_interleave(n_views))


ENTRIES = (
    Entry(
        name="scenes",
        summary="drawn scenes of 1 to 5 objects with masks, boxes, captions, style domains and viewpoints",
        kind="scenes",
        n="any number, 2000 by default",
        licence="drawn here (MIT); photographs of backgrounds as in `photos`",
        source="generated; backgrounds from the wheel scikit-image 0.26.0",
        loader=load_scenes,
        fake=fake_scenes,
        files=tuple(photo.file for photo in PHOTOS if photo.name in NATURAL),
    ),
)
