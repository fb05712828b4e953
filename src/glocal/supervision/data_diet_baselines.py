"""Subsets that look at no score, and measures of agreement between scores. n examples, m kept, f features."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
from torch import Tensor


def random_subset(n: int, m: int, *, generator: torch.Generator) -> Int[Tensor, " m"]:
    """`m` of `n` positions, drawn without regard to classes.

    Raises:
        ValueError: if `m` is not between 1 and `n`.
    """
    if not 1 <= m <= n:
        raise ValueError(f"m must be between 1 and the {n} examples, got {m}")
    return torch.randperm(n, generator=generator, device=generator.device)[:m]


def balanced_subset(labels: Int[Tensor, " n"], m: int, *, generator: torch.Generator) -> Int[Tensor, " m"]:
    """`m` random positions with class sizes that differ by at most one, as long as every class is large enough.

    Raises:
        ValueError: if `m` is not between 1 and `n`.
    """
    shuffled = random_subset(len(labels), len(labels), generator=generator)
    if not 1 <= m <= len(labels):
        raise ValueError(f"m must be between 1 and the {len(labels)} examples, got {m}")
    rank = torch.empty_like(shuffled)
    for k in labels.unique():
        members = shuffled[labels[shuffled] == k]
        rank[members] = torch.arange(len(members), device=rank.device)
    return shuffled[rank[shuffled].argsort(stable=True)][:m]


def k_centre(features: Float[Tensor, "n f"], m: int, *, generator: torch.Generator) -> Int[Tensor, " m"]:
    r"""Greedy $k$-centre: starting from a random example, add again and again the one farthest from all chosen.

    A prefix of the answer is the answer for a smaller `m`. Cost: m products of an n x f matrix with a vector.

    Raises:
        ValueError: if `m` is not between 1 and `n`.

    Source: Sener and Savarese, ICLR 2018, the greedy algorithm without existing pool.
    """
    if not 1 <= m <= len(features):
        raise ValueError(f"m must be between 1 and the {len(features)} examples, got {m}")
    squares = features.square().sum(1)
    chosen = random_subset(len(features), 1, generator=generator).to(features.device)
    distance = torch.full_like(squares, torch.inf)
    picks = [chosen]
    for _ in range(m - 1):
        newest = picks[-1]
        distance = torch.minimum(distance, squares + squares[newest] - 2 * (features @ features[newest[0]]))
        distance[newest] = -torch.inf
        picks.append(distance.argmax()[None])
    return torch.cat(picks)


def rank_correlation(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float:
    """Spearman's correlation; ties and infinities share the mean of their ranks."""
    ranks = [rankdata(scores.cpu().numpy()) for scores in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def detection_auroc(scores: Float[Tensor, " n"], is_positive: Bool[Tensor, " n"]) -> float:
    """Area under the ROC curve: the chance that a positive example scores above a negative one, ties counting half.

    Raises:
        ValueError: if one of the two groups is empty.
    """
    positive = is_positive.cpu().numpy()
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        raise ValueError(f"both groups must hold examples, got {n_positive} positive and {n_negative} negative")
    ranks = rankdata(scores.cpu().numpy())
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def class_shares(labels: Int[Tensor, "*reps m"], n_classes: int) -> Float[Tensor, "*reps k"]:
    """Share of each class in a subset: rare classes may vanish from the hardest examples."""
    return torch.nn.functional.one_hot(labels, n_classes).double().mean(-2)
