r"""Problems of distribution-agnostic category discovery: long-tailed training sets, balanced tests, views of images.

n images, k classes, b images in a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from glocal.data.sampling import long_tailed_counts, subsample_classes
from glocal.data.splits import stratified_split
from glocal.supervision.bacon import UNLABELLED

TAILS = ("groups", "all")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Problem:
    r"""One draw of the task; images are given by their index into a pool.

    Args:
        train: training images.
        train_labels: their true classes, known ones first; only evaluations may look at them.
        given: the labels that training sees, -1 for unlabelled images.
        test: test images, the same number of each class.
        test_labels: their classes.
        n_known: number of known classes.
        counts: true class sizes of the training set.
    """

    train: Int[Tensor, " n"]
    train_labels: Int[Tensor, " n"]
    given: Int[Tensor, " n"]
    test: Int[Tensor, " m"]
    test_labels: Int[Tensor, " m"]
    n_known: int
    counts: tuple[int, ...]

    @property
    def n_classes(self) -> int:
        return len(self.counts)

    @property
    def sampling_weights(self) -> Float[Tensor, " n"]:
        r"""Weight 1 for labelled and $|D_l|/|D_u|$ for unlabelled images: half of a batch each, in expectation."""
        is_labelled = self.given != UNLABELLED
        n_labelled = int(is_labelled.sum())
        return torch.where(is_labelled, 1.0, n_labelled / (len(is_labelled) - n_labelled))


def draw_problem(
    labels: Int[Tensor, " n"],
    n_known: int,
    *,
    largest: int,
    imbalance: float,
    n_test: int = 0,
    test: Int[Tensor, " m"] | None = None,
    tail: str = "groups",
    generator: torch.Generator,
) -> Problem:
    """A random choice of known classes, a long-tailed training set and a balanced test set.

    Args:
        labels: classes of all images of the pool.
        n_known: number of known classes; half of the training images of each are labelled.
        largest: training images of the largest class.
        imbalance: ratio of the largest to the smallest class.
        n_test: test images per class, if the pool has no published test part.
        test: otherwise, indices of that part.
        tail: `groups`, known and novel classes have a tail each; `all`, one tail over all classes in random order.
        generator: source of randomness.

    Raises:
        ValueError: for an unknown tail, or too few or too many known classes.
    """
    n_classes = int(labels.max()) + 1
    if tail not in TAILS:
        raise ValueError(f"tail must be one of {', '.join(TAILS)}, got {tail!r}")
    if not 1 <= n_known < n_classes:
        raise ValueError(f"n_known must be between 1 and {n_classes - 1} to leave a novel class, got {n_known}")
    labels = torch.randperm(n_classes, generator=generator)[labels]
    if tail == "groups":
        counts = [c for k in (n_known, n_classes - n_known) for c in long_tailed_counts(largest, k, imbalance)]
    else:
        sizes = torch.tensor(long_tailed_counts(largest, n_classes, imbalance))
        counts = sizes[torch.randperm(n_classes, generator=generator)].tolist()
    if test is None:
        test, pool = stratified_split(labels, (n_test, largest), generator=generator)
    else:
        is_free = torch.ones(len(labels), dtype=torch.bool)
        is_free[test] = False
        pool = is_free.nonzero().squeeze(1)
    train = pool[subsample_classes(labels[pool], counts, generator=generator)]
    given = torch.full_like(train, UNLABELLED)
    for k in range(n_known):
        members = (labels[train] == k).nonzero().squeeze(1)  # in random order already
        given[members[: max(1, len(members) // 2)]] = k
    return Problem(train, labels[train], given, test, labels[test], n_known, tuple(counts))


def crop(
    images: Float[Tensor, "n c h w"], top: Int[Tensor, " n"], left: Int[Tensor, " n"], size: int
) -> Float[Tensor, "n c size size"]:
    """A square window of each image, at its own place."""
    windows = images.unfold(2, size, 1).unfold(3, size, 1)  # all of them, as a view
    return windows[torch.arange(len(images), device=images.device), :, top, left]


@dataclass(frozen=True)
class Views:
    """How images become inputs: `random` for training, `plain` for estimation and test."""

    random: Callable[..., Tensor]
    plain: Callable[[Tensor], Tensor]


def digit_views(noise: float = 0.1, dropout: float = 0.1) -> Views:
    """Views of small grey images: shift by up to one pixel, Gaussian noise, pixel dropout; no flips.

    Args:
        noise: standard deviation of the noise.
        dropout: share of the pixels set to zero.
    """

    def random(images: Float[Tensor, "n c h w"], *, generator: torch.Generator) -> Float[Tensor, "n c h w"]:
        n, device = len(images), images.device
        top, left = torch.randint(0, 3, (2, n), generator=generator, device=device)
        moved = crop(F.pad(images, (1, 1, 1, 1)), top, left, images.shape[-1])
        moved = moved + noise * torch.randn(moved.shape, generator=generator, device=device)
        return moved * (torch.rand(moved.shape, generator=generator, device=device) >= dropout)

    return Views(random, lambda images: images)


def photo_views(size: int = 224, resize: int = 256) -> Views:
    """Views of colour photographs, as GCD makes them: resize, random crop, random flip, ImageNet's normalisation.

    The colour jitter of the official transform has strength zero and is left out.

    Args:
        size: side of the input in pixels.
        resize: side before cropping.
    """

    def enlarge(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 resize resize"]:
        images = F.interpolate(images, size=(resize, resize), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
        return (images - mean) / std

    def random(images: Float[Tensor, "n 3 h w"], *, generator: torch.Generator) -> Float[Tensor, "n 3 _ _"]:
        n, device = len(images), images.device
        top, left = torch.randint(0, resize - size + 1, (2, n), generator=generator, device=device)
        cropped = crop(enlarge(images), top, left, size)
        is_flipped = torch.rand(n, 1, 1, 1, generator=generator, device=device) < 0.5
        return torch.where(is_flipped, cropped.flip(-1), cropped)

    def plain(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 _ _"]:
        edge = (resize - size) // 2
        return enlarge(images)[..., edge : edge + size, edge : edge + size]

    return Views(random, plain)
