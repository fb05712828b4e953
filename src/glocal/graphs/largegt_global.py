r"""The global branch of LargeGT: a codebook kept by a moving average, and attention to it with counts.

Dwivedi et al., *Graph Transformers for Large Graphs* (arXiv:2312.11109), after GOAT (Kong et al., ICML 2023).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

VQ_INITS = ("data", "official")
EPS = 1e-5


class Codebook(nn.Module):
    r"""Centroids of the queries of all nodes, kept by an exponential moving average; nothing in it is trained.

    Args:
        n_nodes: $N$, rows of the table of assignments.
        n_centroids: $M$.
        dim: $2g$, coordinates of a query.
        decay: of the moving average.
        vq_init: `"data"` starts at rows of the first batch with counts of one; `"official"` at Gaussian rows with
            counts of zero, which the first update throws far out.
        generator: source of the initial assignments, of the initial rows and of nothing else.

    Source: the vector quantiser of GOAT (Kong et al., ICML 2023), used by LargeGT's global module.
    """

    centroids: Tensor
    normalized: Tensor
    sizes: Tensor
    sums: Tensor
    assignment: Tensor
    counts: Tensor
    is_ready: Tensor

    def __init__(
        self,
        n_nodes: int,
        n_centroids: int,
        dim: int,
        *,
        decay: float = 0.99,
        vq_init: str = "data",
        generator: torch.Generator,
    ) -> None:
        if vq_init not in VQ_INITS:
            raise ValueError(f"vq_init must be one of {', '.join(VQ_INITS)}, got {vq_init!r}")
        super().__init__()
        self.decay, self.vq_init, self.generator = decay, vq_init, generator
        device = generator.device
        rows = torch.randn(n_centroids, dim, generator=generator, device=device)
        self.norm = nn.BatchNorm1d(dim, affine=False)
        self.register_buffer("normalized", rows)  # E, in the coordinates of the normalised queries
        self.register_buffer("centroids", rows.clone())  # mu, in those of the queries
        self.register_buffer("sizes", torch.zeros(n_centroids, device=device))  # c
        self.register_buffer("sums", rows.clone())  # w
        drawn = torch.randint(n_centroids, (n_nodes,), generator=generator, device=device)
        self.register_buffer("assignment", drawn.int())
        self.register_buffer("counts", torch.bincount(drawn, minlength=n_centroids))
        self.register_buffer("is_ready", torch.tensor(vq_init == "official", device=device))

    @torch.no_grad()
    def start(self, q: Float[Tensor, "b w"]) -> None:
        """Centroids at random rows of the first batch, whose mean and variance start the running statistics."""
        self.norm.running_mean, self.norm.running_var = q.mean(0), q.var(0)
        picked = torch.randint(len(q), (len(self.sizes),), generator=self.generator, device=q.device)
        self.centroids.copy_(q[picked])
        self.normalized.copy_((q[picked] - q.mean(0)) / (q.var(0) + EPS).sqrt())
        self.sums.copy_(self.normalized)
        self.sizes.fill_(1)
        self.is_ready.fill_(True)

    @torch.no_grad()
    def update(self, q: Float[Tensor, "b w"], nodes: Int[Tensor, " b"]) -> None:
        r"""One step of k-means with a moving average.

        $$c \leftarrow \delta c + (1 - \delta) n, \quad w \leftarrow \delta w + (1 - \delta) \textstyle\sum q, \quad
          E = w / c, \quad \mu = E \odot \sqrt{\sigma^2 + \epsilon} + m,$$

        with $n$ and $\sum q$ per centroid over the normalised batch, $c$ smoothed so that no entry is zero, and $m$,
        $\sigma^2$ the running statistics of the queries.

        Args:
            q: queries of the batch.
            nodes: their node numbers, all different.
        """
        self.norm.train()
        normalized = self.norm(q)
        nearest = torch.cdist(normalized, self.normalized).argmin(1)
        members = F.one_hot(nearest, len(self.sizes)).to(q.dtype)
        self.sizes.mul_(self.decay).add_(members.sum(0), alpha=1 - self.decay)
        total = self.sizes.sum()
        self.sizes.copy_((self.sizes + EPS) / (total + len(self.sizes) * EPS) * total)
        self.sums.mul_(self.decay).add_(members.T @ normalized, alpha=1 - self.decay)
        self.normalized.copy_(self.sums / self.sizes[:, None])
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None
        assert variance is not None
        self.centroids.copy_(self.normalized * (variance + EPS).sqrt() + mean)
        # the histogram of the table, without reading all of the table
        self.counts -= torch.bincount(self.assignment[nodes], minlength=len(self.counts))
        self.counts += torch.bincount(nearest, minlength=len(self.counts))
        self.assignment[nodes] = nearest.int()


def counted_attention(
    queries: Float[Tensor, "b h d"],
    keys: Float[Tensor, "m h d"],
    values: Float[Tensor, "m h d"],
    counts: Int[Tensor, " m"] | None = None,
    dropout: nn.Module | None = None,
) -> Float[Tensor, "b hd"]:
    r"""$\mathrm{softmax}(Q K^\top / \sqrt d + \log n) V$ per head: row $m$ counts as $n_m$ equal rows.

    Args:
        queries: $Q$.
        keys: $K$.
        values: $V$.
        counts: $n$; rows that count zero times get weight zero. None counts every row once.
        dropout: applied to the attention weights.
    """
    logits = torch.einsum("bhd,mhd->bhm", queries, keys) / math.sqrt(queries.shape[-1])
    if counts is not None:
        logits = logits + counts.to(logits.dtype).log()  # log 0 = -inf
    weights = logits.softmax(-1)
    if dropout is not None:
        weights = dropout(weights)
    return torch.einsum("bhm,mhd->bhd", weights, values).flatten(1)


class GlobalModule(nn.Module):
    r"""Attention of a node to the codebook of all nodes.

    $q_i = [W_p f_{in}(x_i) \Vert p_i]$ with a structural encoding $p_i$; keys are $W_k \mu$, values $W_v$ times the
    feature half of $\mu$ alone.

    Args:
        n_features: $F$.
        width: $d$, of every head.
        n_heads: $H$.
        global_dim: $g$.
        codebook: $\mu$ with its counts.
        dropout: inside $f_{in}$.
        attn_dropout: on the attention weights.

    Source: the global module of the paper, after GOAT.
    """

    def __init__(
        self,
        n_features: int,
        width: int,
        n_heads: int,
        global_dim: int,
        codebook: Codebook,
        *,
        dropout: float = 0.5,
        attn_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.n_heads, self.codebook = n_heads, codebook
        self.f_in = nn.Sequential(
            nn.Linear(n_features, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width)
        )
        self.project = nn.Linear(width, global_dim)
        self.query, self.key = (nn.Linear(2 * global_dim, n_heads * width) for _ in range(2))
        self.value = nn.Linear(global_dim, n_heads * width)
        self.dropout = nn.Dropout(attn_dropout)

    def queries(self, x: Float[Tensor, "b f"], encoding: Float[Tensor, "b g"]) -> Float[Tensor, "b w"]:
        r"""$q_i$."""
        return torch.cat([self.project(self.f_in(x)), encoding], dim=-1)

    def attend(
        self, q: Float[Tensor, "b w"], memory: Float[Tensor, "m w"], counts: Int[Tensor, " m"] | None
    ) -> Float[Tensor, "b hd"]:
        """Attention of `q` to the rows of `memory`: the codebook, or the queries of all nodes."""
        heads = (self.n_heads, -1)
        features = memory[:, : memory.shape[1] // 2]
        parts = (self.query(q), self.key(memory), self.value(features))
        query, key, value = (part.unflatten(-1, heads) for part in parts)
        return counted_attention(query, key, value, counts, self.dropout)

    def forward(
        self,
        x: Float[Tensor, "b f"],
        encoding: Float[Tensor, "b g"],
        nodes: Int[Tensor, " b"],
        memory: Float[Tensor, "n w"] | None = None,
    ) -> Float[Tensor, "b hd"]:
        """Representation of `nodes`; in training mode the codebook is updated after the attention.

        Args:
            x: raw features of the nodes.
            encoding: their structural encodings.
            nodes: their numbers.
            memory: queries of all nodes, to attend to them exactly and leave the codebook alone.
        """
        q = self.queries(x, encoding)
        if memory is not None:
            return self.attend(q, memory, None)
        if self.training and not self.codebook.is_ready:
            self.codebook.start(q.detach())
        # copies: the update below must not change what the backward pass of this step needs
        out = self.attend(q, self.codebook.centroids.clone(), self.codebook.counts.clone())
        if self.training:
            self.codebook.update(q.detach(), nodes)
        return out
