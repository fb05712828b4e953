"""Splits of a data set into parts, drawn from a generator."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def stratified_split(
    labels: Int[Tensor, " n"], sizes: Sequence[int | float], *, generator: torch.Generator
) -> tuple[Int[Tensor, " _"], ...]:
    """Disjoint random parts in which every class is represented alike.

    Args:
        labels: class indices; classes that do not occur are ignored.
        sizes: one entry per part; either all `int`, examples per class, or all `float`, fractions of each
            class, in (0, 1) and with a sum of at most 1.
        generator: source of randomness; the same state gives the same parts.

    Returns:
        One tensor of indices into `labels` per part, in random order, so that a prefix is a random sample.

    Raises:
        ValueError: the sizes are not valid, or a class is too small to fill every part.
    """
    sizes = tuple(sizes)
    is_counts = _check_sizes(sizes)
    n = len(labels)
    shuffled = torch.randperm(n, generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    classes, dense, counts = labels[by_class].unique_consecutive(return_inverse=True, return_counts=True)
    starts = counts.cumsum(0) - counts
    rank = torch.arange(n) - starts[dense]  # position of an example within its (shuffled) class
    if is_counts:
        ends = torch.tensor(sizes, dtype=torch.long).cumsum(0).expand(len(classes), -1)
    else:
        share = torch.tensor(sizes, dtype=torch.float64).cumsum(0)
        ends = (share * counts[:, None]).round().long()
    _check_classes(classes, counts, ends, sizes)
    part = (rank[:, None] >= ends[dense]).sum(1)  # number of parts that end before this rank
    part_of = torch.empty(n, dtype=torch.long)
    part_of[by_class] = part
    return tuple(shuffled[part_of[shuffled] == k] for k in range(len(sizes)))


def _check_sizes(sizes: tuple[int | float, ...]) -> bool:
    """Whether `sizes` are counts; `ValueError` if they are neither counts nor fractions."""
    if not sizes:
        raise ValueError("sizes must have at least one entry, got none")
    if all(isinstance(size, int) for size in sizes):
        if min(sizes) < 1:
            raise ValueError(f"sizes given as int must be at least 1 per class, got {sizes}")
        return True
    if not all(isinstance(size, float) for size in sizes):
        raise ValueError(f"sizes must be all int (examples per class) or all float (fractions), got {sizes}")
    if min(sizes) <= 0 or sum(sizes) > 1 + 1e-9:
        raise ValueError(f"sizes given as float must be in (0, 1) with a sum of at most 1, got {sizes}")
    return False


def _check_classes(
    classes: Int[Tensor, " k"],
    counts: Int[Tensor, " k"],
    ends: Int[Tensor, "k parts"],
    sizes: Sequence[int | float],
) -> None:
    smallest = ends.diff(dim=1, prepend=torch.zeros_like(ends[:, :1])).min(1).values
    short = (ends[:, -1] > counts) | (smallest < 1)
    if short.any():
        worst = int(short.nonzero()[0])
        raise ValueError(
            f"sizes {tuple(sizes)} need more examples than class {int(classes[worst])} has: "
            f"got {int(counts[worst])} examples of it; choose smaller sizes or leave the class out"
        )


def node_split(
    labels: Int[Tensor, " n"], n_train_per_class: int, n_val: int, *, generator: torch.Generator
) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " n"], Bool[Tensor, " n"]]:
    """Train, validation and test masks of nodes: a few labels per class, `n_val` of the others, the rest.

    Args:
        labels: class indices.
        n_train_per_class: labelled nodes of each class.
        n_val: validation nodes, drawn from all classes together.
        generator: source of randomness.

    Raises:
        ValueError: a class is too small, or nothing is left for testing.
    """
    n = len(labels)
    (train,) = stratified_split(labels, (n_train_per_class,), generator=generator)
    if not 1 <= n_val < n - len(train):
        raise ValueError(f"n_val must be between 1 and {n - len(train) - 1} to leave test nodes, got {n_val}")
    masks = torch.zeros(3, n, dtype=torch.bool)
    masks[0, train] = True
    rest = torch.randperm(n, generator=generator)
    rest = rest[~masks[0, rest]]
    masks[1, rest[:n_val]] = True
    masks[2, rest[n_val:]] = True
    return masks[0], masks[1], masks[2]
