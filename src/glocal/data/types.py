"""What the loaders return: small frozen containers of tensors whose shapes are checked."""

from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

T = TypeVar("T")


@dataclass(frozen=True)
class ImageData:
    """Labelled images.

    Args:
        images: pixels in [0, 1].
        labels: class indices in `range(len(class_names))`.
        class_names: one name per class.
        domains: style domain of each image, if the set has domains.
        domain_names: one name per domain.
    """

    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    class_names: tuple[str, ...]
    domains: Int[Tensor, " n"] | None = None
    domain_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Int[Tensor, " m"]) -> "ImageData":
        """The images at `index`, in that order."""
        domains = None if self.domains is None else self.domains[index]
        return replace(self, images=self.images[index], labels=self.labels[index], domains=domains)


@dataclass(frozen=True)
class TableData:
    """A labelled table of real features.

    Args:
        x: features, unscaled.
        labels: class indices in `range(len(class_names))`.
        class_names: one name per class.
        feature_names: one name per column.
    """

    x: Float[Tensor, "n d"]
    labels: Int[Tensor, " n"]
    class_names: tuple[str, ...]
    feature_names: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Int[Tensor, " m"]) -> "TableData":
        """The rows at `index`, in that order."""
        return replace(self, x=self.x[index], labels=self.labels[index])


@dataclass(frozen=True)
class RatingData:
    """Explicit ratings, one entry per (user, item) pair.

    Args:
        users: user indices in `range(n_users)`.
        items: item indices in `range(n_items)`.
        ratings: the ratings given.
        timestamps: seconds since 1970.
        n_users: number of users.
        n_items: number of items.
    """

    users: Int[Tensor, " n"]
    items: Int[Tensor, " n"]
    ratings: Float[Tensor, " n"]
    timestamps: Int[Tensor, " n"]
    n_users: int
    n_items: int

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class InteractionData:
    """Implicit feedback with a published train/test split: pairs (user, item).

    Args:
        train: training pairs, columns user and item.
        test: held-out pairs, columns user and item.
        n_users: number of users.
        n_items: number of items.
    """

    train: Int[Tensor, "n 2"]
    test: Int[Tensor, "m 2"]
    n_users: int
    n_items: int


@dataclass(frozen=True)
class TextData:
    """Labelled sentences."""

    sentences: tuple[str, ...]
    labels: Int[Tensor, " n"]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.sentences)


@dataclass(frozen=True)
class Splits(Generic[T]):
    """Published train and test parts of one data set."""

    train: T
    test: T


@dataclass(frozen=True)
class CharacterTable:
    """What the Unicode names say about the classes of `GlyphData`: one row per character.

    Args:
        characters: the characters themselves, ordered by code point.
        names: their Unicode names, e.g. `LATIN SMALL LETTER E WITH ACUTE`.
        scripts: index into `script_names`, the superclass.
        cases: index into `case_names`.
        bases: index into `base_names`, the letter without case and diacritics.
        diacritics: which of `diacritic_names` the character carries.
        look_alikes: index of the first character drawn with the same outline (Latin A, Greek Alpha, ...); a
            character without such a twin before it has its own index.
    """

    characters: tuple[str, ...]
    names: tuple[str, ...]
    scripts: Int[Tensor, " k"]
    script_names: tuple[str, ...]
    cases: Int[Tensor, " k"]
    case_names: tuple[str, ...]
    bases: Int[Tensor, " k"]
    base_names: tuple[str, ...]
    diacritics: Bool[Tensor, "k m"]
    diacritic_names: tuple[str, ...]
    look_alikes: Int[Tensor, " k"]

    def __len__(self) -> int:
        return len(self.characters)

    def attributes(self) -> tuple[Float[Tensor, "k a"], tuple[str, ...]]:
        """Binary attributes of each class and their names: script, case, base letter (one-hot), diacritics."""
        columns, names = [], []
        for what in ("script", "case", "base"):
            values = getattr(self, f"{what}_names")
            columns.append(one_hot(getattr(self, f"{what}s"), len(values)).float())
            names += [f"{what}={value}" for value in values]
        columns.append(self.diacritics.float())
        return torch.cat(columns, dim=1), (*names, *(f"with {name}" for name in self.diacritic_names))


@dataclass(frozen=True)
class GlyphData:
    """Characters drawn from several typefaces.

    Args:
        images: ink in [0, 1], 0 is paper.
        labels: index into the rows of `table`.
        faces: index into `face_names`.
        domains: index into `domain_names`, the typeface family.
        face_names: one name per face, e.g. `DejaVu Serif Bold`.
        domain_names: one name per family.
        table: the classes.
    """

    images: Float[Tensor, "n 1 h w"]
    labels: Int[Tensor, " n"]
    faces: Int[Tensor, " n"]
    domains: Int[Tensor, " n"]
    face_names: tuple[str, ...]
    domain_names: tuple[str, ...]
    table: CharacterTable

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def superclasses(self) -> Int[Tensor, " n"]:
        """Script of each image, an index into `table.script_names`."""
        return self.table.scripts[self.labels]

    def subset(self, index: Int[Tensor, " m"]) -> "GlyphData":
        """The images at `index`, in that order; the classes stay the same."""
        parts = {name: getattr(self, name)[index] for name in ("images", "labels", "faces", "domains")}
        return replace(self, **parts)

    def as_images(self) -> ImageData:
        """The same pictures as `ImageData`, with characters as class names."""
        return ImageData(self.images, self.labels, self.table.characters, self.domains, self.domain_names)


@dataclass(frozen=True)
class PhotoData:
    """Photographs of different sizes.

    Args:
        images: one tensor of shape (3, height, width) with values in [0, 1] per photograph.
        names: one name per photograph.
        licences: terms of use of each photograph.
    """

    images: tuple[Float[Tensor, "3 _ _"], ...]
    names: tuple[str, ...]
    licences: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)
