"""Recommendation from implicit feedback: the user-item matrix, splits per user, full ranking, Recall and NDCG."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float, Int
from torch import Tensor

# Scores of all items for a chunk of users: indices of shape `(users,)` in, `(users, items)` out.
Scorer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Interactions:
    """Binary user-item matrix $A$: its ones as pairs, sorted by user, then item. Build it with `from_pairs`.

    Args:
        pairs: the ones of $A$, columns user and item, each pair once.
        n_users: number of rows of $A$.
        n_items: number of columns of $A$.
    """

    pairs: Int[Tensor, "n 2"]
    n_users: int
    n_items: int

    @classmethod
    def from_pairs(cls, pairs: Int[Tensor, "n 2"], n_users: int, n_items: int) -> "Interactions":
        """Sort the pairs and drop repetitions.

        Raises:
            ValueError: if a user or an item lies outside its range.
        """
        for column, (name, size) in enumerate([("user", n_users), ("item", n_items)]):
            if not len(pairs):
                break
            low, high = int(pairs[:, column].min()), int(pairs[:, column].max())
            if low < 0 or high >= size:
                raise ValueError(f"{name} indices must lie in [0, {size}), got {low} to {high}: relabel them first")
        keys = torch.unique(pairs[:, 0] * n_items + pairs[:, 1])
        return cls(torch.stack([keys // n_items, keys % n_items], 1), n_users, n_items)

    def __len__(self) -> int:
        return len(self.pairs)

    def to(self, device: str | torch.device) -> "Interactions":
        """The same matrix on another device."""
        return Interactions(self.pairs.to(device), self.n_users, self.n_items)

    @property
    def user_degrees(self) -> Int[Tensor, " users"]:
        """Number of items of each user, $d_u$."""
        return torch.bincount(self.pairs[:, 0], minlength=self.n_users)

    @property
    def item_degrees(self) -> Int[Tensor, " items"]:
        """Number of users of each item, $d_i$."""
        return torch.bincount(self.pairs[:, 1], minlength=self.n_items)

    def union(self, other: "Interactions") -> "Interactions":
        """The pairs of either matrix."""
        return Interactions.from_pairs(torch.cat([self.pairs, other.pairs]), self.n_users, self.n_items)

    def swapped(self) -> "Interactions":
        r"""The transpose $A^\top$: items take the place of users."""
        return Interactions.from_pairs(self.pairs.flip(1), self.n_items, self.n_users)

    def to_scipy(self) -> scipy.sparse.csr_matrix:
        """$A$ as a SciPy matrix in compressed rows, single precision."""
        users, items = self.pairs.cpu().numpy().T
        ones = np.ones(len(users), dtype=np.float32)
        return scipy.sparse.csr_matrix((ones, (users, items)), shape=(self.n_users, self.n_items))

    def rows(self, users: Int[Tensor, " chunk"]) -> Int[Tensor, "m 2"]:
        """The pairs of some users, with each user replaced by its position in `users`."""
        position = torch.full((self.n_users,), -1, device=users.device)
        position[users] = torch.arange(len(users), device=users.device)
        row = position[self.pairs[:, 0]]
        inside = row >= 0
        return torch.stack([row[inside], self.pairs[inside, 1]], 1)


def k_core(pairs: Int[Tensor, "n 2"], k: int) -> Interactions:
    """Largest subset in which every user and every item has at least `k` pairs, relabelled without gaps.

    Args:
        pairs: user and item of each positive.
        k: smallest degree.

    Raises:
        ValueError: if nothing is left.
    """
    while len(pairs):
        degrees = [torch.bincount(column)[column] for column in pairs.T]
        kept = (degrees[0] >= k) & (degrees[1] >= k)
        if kept.all():
            break
        pairs = pairs[kept]
    if not len(pairs):
        raise ValueError(f"the {k}-core is empty: lower k or the rating threshold")
    (users, u_index), (items, i_index) = (torch.unique(column, return_inverse=True) for column in pairs.T)
    return Interactions.from_pairs(torch.stack([u_index, i_index], 1), len(users), len(items))


def split_per_user(
    interactions: Interactions, fractions: tuple[float, ...], *, generator: torch.Generator
) -> tuple[Interactions, ...]:
    """Split each user's items at random into a remainder and parts of the given sizes.

    Args:
        interactions: all pairs.
        fractions: size of each part as a fraction of the user's items, rounded, but at least one item.
        generator: source of the permutation, on the CPU.

    Returns:
        The remainder first (the training set), then one set per fraction.

    Raises:
        ValueError: if a fraction is not in (0, 1) or together they leave a user without a remainder.
    """
    if not fractions or not all(0 < fraction < 1 for fraction in fractions):
        raise ValueError(f"fractions must lie in (0, 1), got {fractions}")
    pairs, degrees = interactions.pairs.cpu(), interactions.user_degrees.cpu()
    keys = torch.rand(len(pairs), generator=generator)
    pairs = pairs[torch.argsort(pairs[:, 0] + keys.double())]  # by user, at random within a user
    starts = degrees.cumsum(0) - degrees
    position = torch.arange(len(pairs)) - starts[pairs[:, 0]]
    sizes = [(degrees * fraction).round().long().clamp_min(1) for fraction in fractions]
    taken = torch.stack(sizes).sum(0)
    if (taken[degrees > 0] >= degrees[degrees > 0]).any():
        raise ValueError(
            f"fractions {fractions} leave users without training items: "
            "lower them or drop users with few items (k_core)"
        )
    parts, end = [], torch.zeros_like(degrees)
    for size in sizes:
        begin, end = end, end + size
        parts.append((position >= begin[pairs[:, 0]]) & (position < end[pairs[:, 0]]))
    parts.insert(0, position >= end[pairs[:, 0]])
    device, shape = interactions.pairs.device, (interactions.n_users, interactions.n_items)
    return tuple(Interactions.from_pairs(pairs[part].to(device), *shape) for part in parts)


def recall_ndcg(
    ranks: Int[Tensor, " m"], rows: Int[Tensor, " m"], n_rows: int, k: int
) -> tuple[Float[Tensor, " users"], Float[Tensor, " users"]]:
    r"""Recall@k and NDCG@k with binary gains, per user.

    $\mathrm{DCG} = \sum_{\text{rank} \le k} 1 / \log_2(\text{rank} + 1)$ over the relevant items; the ideal list
    starts with $\min(k, \text{relevant})$ of them.

    Args:
        ranks: rank of each relevant item in its user's list, from 1.
        rows: the user of each relevant item, in `range(n_rows)`.
        n_rows: number of users; each needs at least one relevant item.
        k: length of the list.

    Source: evaluation code of He et al., LightGCN, SIGIR 2020.
    """
    n_relevant = torch.bincount(rows, minlength=n_rows)
    discounts = 1 / torch.log2(torch.arange(2, k + 2, device=ranks.device, dtype=torch.float32))
    ideal = discounts.cumsum(0)[n_relevant.clamp_max(k) - 1]
    is_hit = ranks <= k
    gains = torch.where(is_hit, discounts[ranks.clamp_max(k) - 1], 0.0)
    n_hits = torch.bincount(rows[is_hit], minlength=n_rows)
    return n_hits / n_relevant, torch.zeros_like(ideal).index_add(0, rows, gains) / ideal


@dataclass(frozen=True)
class RankMetrics:
    """Recall@k and NDCG@k of every user with something to find.

    Args:
        users: the users.
        recall: recall of each.
        ndcg: NDCG of each.
    """

    users: Int[Tensor, " n"]
    recall: Float[Tensor, " n"]
    ndcg: Float[Tensor, " n"]


def top_items(scores: Float[Tensor, "users items"], known: Int[Tensor, "m 2"], k: int) -> Int[Tensor, "users k"]:
    """The `k` items of highest score, best first, without the `known` pairs (row, item)."""
    return scores.index_put(tuple(known.T), scores.new_tensor(-torch.inf)).topk(k, dim=1).indices


def ranks_of(
    scores: Float[Tensor, "users items"], known: Int[Tensor, "m 2"], relevant: Int[Tensor, "r 2"]
) -> Int[Tensor, " r"]:
    """Rank, from 1, of each relevant pair (row, item) among the items of its row that are not known.

    An item that ties with others takes the last of their ranks. Memory: `r * items` comparisons.
    """
    scores = scores.index_put(tuple(known.T), scores.new_tensor(-torch.inf))
    rows, items = relevant.T
    return (scores[rows] >= scores[rows, items][:, None]).sum(1, dtype=torch.int32).long()


class FullRanking:
    """A ranking task, prepared once: all items that a user does not know yet compete with the relevant ones.

    Args:
        known: pairs left out of the ranking, e.g. the training set.
        relevant: pairs to find; users without any are skipped.
        chunk: users scored at once; each of their relevant pairs is compared with all items.
        max_chunks: stop after so many chunks (rehearsals).

    Raises:
        ValueError: if no user has relevant items.
    """

    def __init__(
        self, known: Interactions, relevant: Interactions, *, chunk: int = 256, max_chunks: int | None = None
    ) -> None:
        users = torch.nonzero(relevant.user_degrees).squeeze(1)
        if not len(users):
            raise ValueError("a ranking needs at least one user with relevant items, got none")
        parts = users.split(chunk)[:max_chunks]
        self.chunks = [(part, known.rows(part), relevant.rows(part)) for part in parts]

    def __call__(self, scorer: Scorer, k: int = 20) -> RankMetrics:
        """Recall@k and NDCG@k of a scorer, which gets one chunk of users at a time."""
        metrics = []
        for users, known, wanted in self.chunks:
            ranks = ranks_of(scorer(users), known, wanted)
            metrics.append(recall_ndcg(ranks, wanted[:, 0], len(users), k))
        recall, ndcg = (torch.cat(values) for values in zip(*metrics, strict=True))
        return RankMetrics(torch.cat([users for users, _, _ in self.chunks]), recall, ndcg)


def full_ranking(
    scorer: Scorer,
    known: Interactions,
    relevant: Interactions,
    *,
    k: int = 20,
    chunk: int = 256,
    max_chunks: int | None = None,
) -> RankMetrics:
    """Prepare a `FullRanking` and evaluate one scorer."""
    return FullRanking(known, relevant, chunk=chunk, max_chunks=max_chunks)(scorer, k)
