r"""UltraGCN (Mao et al., CIKM 2021, arXiv:2110.15114): embeddings whose loss stands in for infinite propagation.

$A$ is the binary user-item matrix, $d_u$ and $d_i$ its degrees, $e_u, e_i \in \mathbb{R}^d$ the embeddings.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from glocal.graphs.ranking import Interactions

OMEGA_FORMS = ("code", "paper")
NEGATIVE_MODES = ("pair", "shared")


class MatrixFactorization(nn.Module):
    """One embedding per user and per item; the score of a pair is their inner product.

    Args:
        n_users: number of users.
        n_items: number of items.
        dim: size $d$ of the embeddings.
        std: standard deviation of the normal initialisation.
        generator: source of the initial values; its device is the model's.
    """

    def __init__(
        self,
        n_users: int,
        n_items: int,
        dim: int = 64,
        std: float = 1e-4,
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        table = std * torch.randn(n_users + n_items, dim, generator=generator, device=generator.device)
        self.n_users, self.n_items = n_users, n_items
        self.table = nn.Parameter(table)

    def forward(self) -> tuple[Float[Tensor, "users d"], Float[Tensor, "items d"]]:
        """Embeddings of all users and of all items, as used for scores."""
        users, items = self.table.split([self.n_users, self.n_items])
        return users, items


def constraint_factors(
    interactions: Interactions,
) -> tuple[Float[Tensor, " users"], Float[Tensor, " items"]]:
    r"""The two factors of $\beta_{ui} = \frac{\sqrt{d_u + 1}}{d_u} \cdot \frac{1}{\sqrt{d_i + 1}}$.

    $\beta$ is never stored: its entry for any pair, observed or not, is a product of two numbers.

    Args:
        interactions: the training matrix $A$.

    Returns:
        The factors of the users (0 for a user without items, which has no fixed point) and of the items.

    Source: Section 3.1, the limit of infinite-layer propagation.
    """
    d_user, d_item = interactions.user_degrees.float(), interactions.item_degrees.float()
    user_factor = torch.where(d_user > 0, (d_user + 1).sqrt() / d_user.clamp_min(1), 0.0)
    return user_factor, (d_item + 1).rsqrt()


@dataclass(frozen=True)
class Neighbors:
    r"""The nodes most related to each node, with the weights of these relations.

    Args:
        index: $S(i)$, strongest first; rows that run out of neighbours repeat the node itself. None stands
            for all nodes in their own order, without filtering.
        weight: $\omega_{ij}$ for $j \in S(i)$; 0 where a row ran out.
    """

    index: Int[Tensor, "n k"] | None
    weight: Float[Tensor, "n k"]


def top_neighbors(
    interactions: Interactions, k: int | None = 10, *, form: str = "code", diagonal: bool = True, chunk: int = 2048
) -> Neighbors:
    r"""The `k` items $j$ of largest $\omega_{ij}$ for every item $i$, from the co-occurrences $G = A^\top A$.

    With $g_i = \sum_k G_{ik}$, the form `"code"` (official repository) is
    $\omega_{ij} = G_{ij} \frac{\sqrt{g_i + 1}}{g_i} \frac{1}{\sqrt{g_j + 1}}$, the form `"paper"`
    $\omega_{ij} = \frac{G_{ij}}{g_i - G_{ii}} \sqrt{\frac{g_i}{g_j}}$.

    $G$ is never held whole: a sparse product yields `chunk` of its rows, of which `k` entries each stay;
    $g = A^\top (A \mathbf{1})$ needs no $G$ at all. For neighbours among users pass `interactions.swapped()`.

    Args:
        interactions: the training matrix $A$.
        k: length of each list; None keeps all items, a dense `n_items**2` matrix.
        form: `"code"` or `"paper"`.
        diagonal: let an item be its own neighbour, as in the official code; always False for `"paper"`.
        chunk: rows of $G$ at once.

    Raises:
        ValueError: for an unknown form or a `k` that is not positive.

    Source: Section 3.2, item-item co-occurrence graph; official repository for the form `"code"`.
    """
    if form not in OMEGA_FORMS:
        raise ValueError(f"form must be one of {', '.join(OMEGA_FORMS)}, got {form!r}")
    if k is not None and k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    a = interactions.to_scipy()
    a_t = a.T.tocsr()
    total = a_t @ np.asarray(a.sum(1)).ravel()  # g
    own = np.asarray(a.sum(0)).ravel()  # the diagonal of G: A is binary
    with np.errstate(divide="ignore", invalid="ignore"):  # items without pairs: set to 0 below
        if form == "code":
            row_factor, column_factor = np.sqrt(total + 1) / total, 1 / np.sqrt(total + 1)
        else:
            row_factor, column_factor = np.sqrt(total) / (total - own), 1 / np.sqrt(total)
    row_factor[~np.isfinite(row_factor)] = 0
    column_factor[~np.isfinite(column_factor)] = 0
    n = interactions.n_items
    is_filtered = k is not None
    k = min(k, n) if k is not None else n
    index = np.repeat(np.arange(n)[:, None], k, axis=1)
    weight = np.zeros((n, k), dtype=np.float32)
    for start in range(0, n, chunk):
        block = (a_t[start : start + chunk] @ a).sorted_indices().tocoo()
        rows, columns = block.row + start, block.col
        if form == "paper" or not diagonal:
            kept = rows != columns
            rows, columns, counts = rows[kept], columns[kept], block.data[kept]
        else:
            counts = block.data
        omega = counts * row_factor[rows] * column_factor[columns]
        order = np.lexsort((-omega, rows))  # by row, then weight; stable, so ties stay in column order
        rows, columns, omega = rows[order], columns[order], omega[order]
        rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
        if not is_filtered:
            rank = columns
        first = rank < k
        index[rows[first], rank[first]] = columns[first]
        weight[rows[first], rank[first]] = omega[first]
    device = interactions.pairs.device
    weights = torch.from_numpy(weight).to(device)
    return Neighbors(torch.from_numpy(index).to(device) if is_filtered else None, weights)


def candidate_logits(
    anchors: Float[Tensor, "batch d"], table: Float[Tensor, "n d"], index: Int[Tensor, "batch k"]
) -> Float[Tensor, "batch k"]:
    r"""Inner products of each anchor with its own candidates, $e_b^\top t_{\text{index}_{bk}}$.

    Two routes to the same numbers: a short table is multiplied whole and picked from; from a long one the
    candidates are gathered first, which holds `batch * k * d` numbers.
    """
    if len(table) <= 16 * index.shape[1]:
        return (anchors @ table.T).gather(1, index)
    return (F.embedding(index, table) * anchors[:, None]).sum(-1)


@dataclass(frozen=True)
class UltraGCNLoss:
    r"""The objective of UltraGCN for one batch of positive pairs.

    $$\sum_{(u,i)} \Bigl[(w_1 + w_2 \beta_{ui})\, \ell^+_{ui}
      + \frac{W^-}{R} \sum_{j=1}^{R} (w_3 + w_4 \beta_{uj})\, \ell^-_{uj}
      + \lambda \sum_{j \in S(i)} \omega_{ij}\, \ell^+_{uj}\Bigr] + \frac{\gamma}{2} \lVert E \rVert^2$$

    with $\ell^\pm_{ui} = -\log \sigma(\pm e_u^\top e_i)$. The weights $\beta$ and $\omega$ are constants.

    Args:
        interactions: the training matrix.
        w: $(w_1, w_2, w_3, w_4)$; $w_1, w_3$ weigh plain cross-entropy, $w_2, w_4$ the constraint loss.
        n_negatives: $R$, drawn uniformly from all items, positives included.
        negative_weight: $W^-$, times the MEAN over the negatives.
        item_neighbors: $S(i)$ and $\omega$; None leaves the item-item loss out.
        item_weight: $\lambda$.
        user_neighbors: lists of related users for the mirrored term, which the paper rejects.
        user_weight: weight of that term.
        reg_weight: $\gamma$; acts on the whole tables at every batch.
        neg_mode: `"pair"`, own negatives for each pair (official), or `"shared"`, one set for the batch,
            which has the same expectation and needs one matrix product.
        exclude_positives: redraw negatives until none is a positive of its user; needs `"pair"`.

    Source: Sections 3.1 to 3.3 and the official repository.
    """

    interactions: Interactions
    w: tuple[float, float, float, float] = (1e-6, 1.0, 1e-6, 1.0)
    n_negatives: int = 1500
    negative_weight: float = 300.0
    item_neighbors: Neighbors | None = None
    item_weight: float = 5e-4
    user_neighbors: Neighbors | None = None
    user_weight: float = 0.0
    reg_weight: float = 1e-4
    neg_mode: str = "pair"
    exclude_positives: bool = False
    factors: tuple[Tensor, Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.neg_mode not in NEGATIVE_MODES:
            raise ValueError(f"neg_mode must be one of {', '.join(NEGATIVE_MODES)}, got {self.neg_mode!r}")
        if self.exclude_positives and self.neg_mode == "shared":
            raise ValueError("exclude_positives needs neg_mode='pair': shared negatives belong to no user")
        if self.n_negatives < 1:
            raise ValueError(f"n_negatives must be at least 1, got {self.n_negatives}")
        object.__setattr__(self, "factors", constraint_factors(self.interactions))

    def __call__(
        self,
        model: MatrixFactorization,
        users: Int[Tensor, " batch"],
        items: Int[Tensor, " batch"],
        *,
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """The objective of the batch of pairs `(users, items)`; a sum, not a mean."""
        user_table, item_table = model()
        user_vectors, item_vectors = F.embedding(users, user_table), F.embedding(items, item_table)
        negatives = self.sample_negatives(users, generator)
        objective = self.main_loss(user_vectors, item_vectors, item_table, users, items, negatives)
        if self.item_neighbors is not None and self.item_weight:
            near = self.item_neighbors
            drawn = negatives[0] if near.index is None else None
            term = neighbor_loss(user_vectors, item_table, near, items, sample=drawn)
            objective = objective + self.item_weight * term
        if self.user_neighbors is not None and self.user_weight:
            near = self.user_neighbors
            objective = objective + self.user_weight * neighbor_loss(item_vectors, user_table, near, users)
        if self.reg_weight:
            objective = objective + self.reg_weight / 2 * torch.dot(model.table.view(-1), model.table.view(-1))
        return objective

    def main_loss(
        self,
        user_vectors: Float[Tensor, "batch d"],
        item_vectors: Float[Tensor, "batch d"],
        item_table: Float[Tensor, "items d"],
        users: Int[Tensor, " batch"],
        items: Int[Tensor, " batch"],
        negatives: Int[Tensor, "rows r"],
    ) -> Float[Tensor, ""]:
        r"""Cross-entropy with weights $w_1 + w_2 \beta_{ui}$ (positives) and $w_3 + w_4 \beta_{uj}$ (negatives).

        `negatives` has one row per pair, or a single row that all pairs share.
        """
        (w1, w2, w3, w4), (user_factor, item_factor) = self.w, self.factors
        user_beta = user_factor.index_select(0, users)
        positive = F.softplus(-(user_vectors * item_vectors).sum(1))  # -log sigmoid(x), without underflow
        if self.neg_mode == "shared":
            negative_logits = user_vectors @ F.embedding(negatives[0], item_table).T
        else:
            negative_logits = candidate_logits(user_vectors, item_table, negatives)
        positive_weight = w1 + w2 * user_beta * item_factor.index_select(0, items)
        negative_weight = w3 + w4 * user_beta[:, None] * item_factor.take(negatives)
        negative = (negative_weight * F.softplus(negative_logits)).sum() / negatives.shape[1]
        return (positive_weight * positive).sum() + self.negative_weight * negative

    def sample_negatives(self, users: Int[Tensor, " batch"], generator: torch.Generator) -> Int[Tensor, "rows r"]:
        """Uniform draws from all items: one row per pair, or one shared row."""
        n_items, device = self.interactions.n_items, users.device
        shape = (1 if self.neg_mode == "shared" else len(users), self.n_negatives)
        negatives = torch.randint(n_items, shape, generator=generator, device=device)
        if self.exclude_positives:
            if bool((self.interactions.user_degrees[users] == n_items).any()):
                raise ValueError("exclude_positives: a user of the batch has all items, none is negative")
            pairs = self.interactions.pairs
            keys = pairs[:, 0] * n_items + pairs[:, 1]  # sorted
            while True:
                wanted = users[:, None] * n_items + negatives
                found = keys[torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)] == wanted
                if not found.any():
                    break
                fresh = torch.randint(n_items, (int(found.sum()),), generator=generator, device=device)
                negatives[found] = fresh
        return negatives


def neighbor_loss(
    anchors: Float[Tensor, "batch d"],
    table: Float[Tensor, "n d"],
    neighbors: Neighbors,
    nodes: Int[Tensor, " batch"],
    *,
    sample: Int[Tensor, " s"] | None = None,
) -> Float[Tensor, ""]:
    r"""$L_I = -\sum_{(u,i)} \sum_{j \in S(i)} \omega_{ij} \log \sigma(e_u^\top e_j)$ over a batch.

    Args:
        anchors: $e_u$ of each pair.
        table: embeddings of all nodes that can be neighbours.
        neighbors: lists and weights.
        nodes: the node $i$ of each pair, whose neighbours should also score high with $u$.
        sample: without filtering, estimate the sum over all nodes from these uniform draws.

    Source: Section 3.2, item-item constraint.
    """
    if neighbors.index is None:
        drawn = torch.arange(len(table), device=table.device) if sample is None else sample
        weight = neighbors.weight[nodes[:, None], drawn] * (len(table) / len(drawn))
        return (weight * F.softplus(-anchors @ F.embedding(drawn, table).T)).sum()
    logits = candidate_logits(anchors, table, neighbors.index.index_select(0, nodes))
    return (neighbors.weight.index_select(0, nodes) * F.softplus(-logits)).sum()


def propagate_with_self_loops(
    interactions: Interactions,
    user_embeddings: Float[Tensor, "users d"],
    item_embeddings: Float[Tensor, "items d"],
    n_layers: int,
) -> tuple[Float[Tensor, "users d"], Float[Tensor, "items d"]]:
    r"""Linear propagation whose fixed point defines $\beta$, on a small graph (dense).

    $e_u \leftarrow \frac{e_u}{d_u + 1} + \sum_{i \in N(u)} \frac{e_i}{\sqrt{(d_u + 1)(d_i + 1)}}$, likewise for
    items; that is $E \leftarrow \hat{A} E$ with the symmetrically normalised adjacency with self loops.
    """
    embeddings = torch.cat([user_embeddings, item_embeddings])
    a = torch.zeros(interactions.n_users, interactions.n_items, dtype=embeddings.dtype)
    a[interactions.pairs[:, 0], interactions.pairs[:, 1]] = 1
    adjacency = torch.eye(len(embeddings), dtype=embeddings.dtype)
    adjacency[: len(a), len(a) :] = a
    adjacency[len(a) :, : len(a)] = a.T
    scale = adjacency.sum(1).rsqrt()
    adjacency = scale[:, None] * adjacency * scale
    for _ in range(n_layers):
        embeddings = adjacency @ embeddings
    return embeddings[: len(a)], embeddings[len(a) :]
