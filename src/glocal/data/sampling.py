r"""Ways in which supervision is withheld: long-tailed subsets, bags with known label sums, permuted labels."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor


def long_tailed_counts(largest: int, n_classes: int, imbalance: float) -> list[int]:
    r"""Exponentially falling class sizes $n_k = \lfloor n_0 R^{-k/(C-1)} \rfloor$, $k = 0, \dots, C - 1$, at least 1.

    Args:
        largest: size $n_0$ of the head class.
        n_classes: number of classes $C$.
        imbalance: ratio $R \ge 1$ of the largest to the smallest class; 1 is balanced.

    Raises:
        ValueError: for a number out of range.
    """
    if largest < 1 or n_classes < 1 or imbalance < 1:
        raise ValueError(
            f"largest and n_classes must be at least 1 and imbalance too, got {largest}, {n_classes}, {imbalance}"
        )
    # the tiny constant keeps n_0 / R from being rounded below an integer it equals
    return [max(1, int(largest * imbalance ** (-k / max(1, n_classes - 1)) + 1e-9)) for k in range(n_classes)]


def subsample_classes(
    labels: Int[Tensor, " n"], counts: Sequence[int], *, generator: torch.Generator
) -> Int[Tensor, " _"]:
    """Random indices with a given number of examples of each class, in random order.

    Args:
        labels: class indices in `range(len(counts))`.
        counts: examples to take of each class; 0 leaves a class out.
        generator: source of randomness.

    Raises:
        ValueError: if a class has fewer examples than asked for.
    """
    shuffled = torch.randperm(len(labels), generator=generator)
    parts = []
    for k, count in enumerate(counts):
        members = shuffled[labels[shuffled] == k]
        if len(members) < count:
            raise ValueError(f"class {k} has {len(members)} examples, fewer than the {count} asked for")
        parts.append(members[:count])
    chosen = torch.cat(parts)
    return chosen[torch.randperm(len(chosen), generator=generator)]


def random_bags(n: int, bag_size: int, *, generator: torch.Generator) -> Int[Tensor, "m b"]:
    """A random partition of `range(n)` into bags of equal size; the examples left over are dropped.

    Raises:
        ValueError: if not even one bag can be filled.
    """
    if not 1 <= bag_size <= n:
        raise ValueError(f"bag_size must be between 1 and the number of examples {n}, got {bag_size}")
    n_bags = n // bag_size
    return torch.randperm(n, generator=generator)[: n_bags * bag_size].reshape(n_bags, bag_size)


def permute_labels(labels: Int[Tensor, " n"], fraction: float, *, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Label noise: the labels of a random share of the examples are permuted among themselves.

    The histogram of the labels does not change, and some of the chosen examples get their own label back.

    Raises:
        ValueError: if `fraction` is not in [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
    chosen = torch.randperm(len(labels), generator=generator)[: round(fraction * len(labels))]
    noisy = labels.clone()
    noisy[chosen] = labels[chosen[torch.randperm(len(chosen), generator=generator)]]
    return noisy
