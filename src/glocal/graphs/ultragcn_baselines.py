"""Baselines of the UltraGCN chapter: LightGCN and BPR (trained), popularity, ItemKNN and EASE (closed form)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from glocal.graphs.ranking import Interactions, Scorer
from glocal.graphs.sparse import SparseOperator, compressed_rows
from glocal.graphs.ultragcn import MatrixFactorization


def normalized_adjacency(interactions: Interactions) -> Float[Tensor, "nodes nodes"]:
    r"""$D^{-1/2} \begin{pmatrix} 0 & A \\ A^\top & 0 \end{pmatrix} D^{-1/2}$, users first, as compressed rows."""
    users, items = interactions.pairs.T
    n = interactions.n_users + interactions.n_items
    rows = torch.cat([users, items + interactions.n_users])
    columns = torch.cat([items + interactions.n_users, users])
    degrees = torch.bincount(rows, minlength=n)
    values = (degrees[rows] * degrees[columns]).float().rsqrt()
    return compressed_rows(rows, columns, values, (n, n))


class LightGCN(MatrixFactorization):
    r"""LightGCN: embeddings propagated without weights or non-linearities, all layers averaged.

    $E^{(l+1)} = D^{-1/2} \tilde{A} D^{-1/2} E^{(l)}$ and $E = \frac{1}{L+1} \sum_{l=0}^{L} E^{(l)}$; the table
    holds $E^{(0)}$. Every training step propagates the whole graph forth and back.

    Args:
        interactions: the training matrix, on the device of the model.
        dim: size of the embeddings.
        std: standard deviation of the normal initialisation.
        n_layers: $L$.
        generator: source of the initial values.

    Source: He et al., LightGCN, SIGIR 2020, equations 3 and 4.
    """

    def __init__(
        self,
        interactions: Interactions,
        dim: int = 64,
        std: float = 0.1,
        n_layers: int = 3,
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__(interactions.n_users, interactions.n_items, dim, std, generator=generator)
        self.n_layers = n_layers
        adjacency = normalized_adjacency(interactions)
        self.adjacency = SparseOperator(adjacency, adjacency)  # symmetric

    def forward(self) -> tuple[Float[Tensor, "users d"], Float[Tensor, "items d"]]:
        """Propagated embeddings of all users and of all items."""
        layer: Tensor = self.table
        total = layer
        for _ in range(self.n_layers):
            layer = self.adjacency @ layer
            total = total + layer
        users, items = (total / (self.n_layers + 1)).split([self.n_users, self.n_items])
        return users, items


@dataclass(frozen=True)
class BPRLoss:
    r"""Bayesian personalised ranking: batch mean of $-\log \sigma(\hat{y}_{ui} - \hat{y}_{uj})$, one $j$ per pair.

    Args:
        n_items: negatives are drawn uniformly from all items.
        reg_weight: of $\frac{1}{2B} \sum (\lVert e_u \rVert^2 + \lVert e_i \rVert^2 + \lVert e_j \rVert^2)$ over the
            batch, on the rows of the table (before propagation).

    Source: Rendle et al., UAI 2009; regulariser as in the official code of LightGCN.
    """

    n_items: int
    reg_weight: float = 1e-4

    def __call__(
        self,
        model: MatrixFactorization,
        users: Int[Tensor, " batch"],
        items: Int[Tensor, " batch"],
        *,
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """The objective of the batch of pairs `(users, items)`."""
        negatives = torch.randint(self.n_items, items.shape, generator=generator, device=items.device)
        user_table, item_table = model()
        difference = F.embedding(items, item_table) - F.embedding(negatives, item_table)
        loss = F.softplus(-(F.embedding(users, user_table) * difference).sum(1)).mean()
        rows = torch.cat([users, items + model.n_users, negatives + model.n_users])
        penalty = F.embedding(rows, model.table).square().sum() / (2 * len(users))
        return loss + self.reg_weight * penalty


def popularity(train: Interactions) -> Scorer:
    """Every user gets the items with most users."""
    degrees = train.item_degrees.float()
    return lambda users: degrees.expand(len(users), -1)


def linear_scorer(train: Interactions, weight: Float[Tensor, "items items"]) -> Scorer:
    """Scores $a_u W$: the row of a user times an item-item matrix."""

    def score(users: Int[Tensor, " chunk"]) -> Float[Tensor, "chunk items"]:
        row = torch.zeros(len(users), train.n_items, device=users.device)
        row[tuple(train.rows(users).T)] = 1
        return row @ weight

    return score


def item_knn(train: Interactions, n_neighbors: int = 100) -> Scorer:
    """Sum of the cosine similarities between a candidate and the user's items, over each item's nearest ones.

    Memory: a dense `n_items**2` matrix.
    """
    a = torch.from_numpy(train.to_scipy().toarray())
    columns = F.normalize(a, dim=0)
    cosine = (columns.T @ columns).fill_diagonal_(0)
    top = cosine.topk(min(n_neighbors, train.n_items), dim=1)
    kept = torch.zeros_like(cosine).scatter(1, top.indices, top.values)
    return linear_scorer(train, kept.T.to(train.pairs.device))


def ease(train: Interactions, reg_weight: float = 200.0) -> Scorer:
    r"""EASE: ridge regression of $A$ on itself with a zero diagonal.

    $W_{ij} = -P_{ij} / P_{jj}$ for $i \ne j$, with $P = (A^\top A + \gamma I)^{-1}$.

    Memory: a few dense `n_items**2` matrices.

    Source: Steck, Embarrassingly shallow autoencoders for sparse data, WWW 2019, equation 8.
    """
    a = torch.from_numpy(train.to_scipy().toarray()).double()
    precision = torch.linalg.inv(a.T @ a + reg_weight * torch.eye(train.n_items, dtype=torch.float64))
    weight = (-precision / precision.diagonal()).fill_diagonal_(0)
    return linear_scorer(train, weight.float().to(train.pairs.device))
