r"""The generator of local augmentation: a conditional VAE of a neighbour's features given those of the centre.

Liu et al., *Local Augmentation for Graph Neural Networks* (ICML 2022, arXiv:2109.03856).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from glocal.graphs.node_classification import seeded
from glocal.graphs.node_tasks import row_normalized

LATENT = 10


def neighbor_pairs(edge_index: Int[Tensor, "2 e"]) -> Int[Tensor, "2 p"]:
    """All ordered pairs (centre, neighbour), each once and without self pairs: what the generator learns from.

    Args:
        edge_index: edges, each in one or in both directions, possibly repeated.

    Returns:
        Centres in the first row, neighbours in the second, in lexicographic order.

    Source: Section on the generator; the official pre-training builds the same pairs node by node.
    """
    both = torch.cat([edge_index, edge_index.flip(0)], dim=1)
    return torch.unique(both[:, both[0] != both[1]], dim=1)


def split_edges(
    edge_index: Int[Tensor, "2 e"], share: float, *, generator: torch.Generator
) -> tuple[Int[Tensor, "2 a"], Int[Tensor, "2 b"]]:
    """Split UNDIRECTED edges: both directions of an edge go to the same side.

    Args:
        edge_index: both directions of every edge.
        share: share of the edges on the second side, in [0, 1).
        generator: on the CPU; decides which.

    Raises:
        ValueError: for a share outside [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"share must be in [0, 1), got {share}")
    pairs = neighbor_pairs(edge_index)
    upper = pairs[:, pairs[0] < pairs[1]]
    order = torch.randperm(upper.shape[1], generator=generator).to(edge_index.device)
    held = round(share * upper.shape[1])
    return neighbor_pairs(upper[:, order[held:]]), neighbor_pairs(upper[:, order[:held]])


class NeighborVAE(nn.Module):
    r"""Conditional VAE of a neighbour $x$ given its centre $c$: $p(x | c) = \int p(x | z, c) \mathcal N(z; 0, I) dz$.

    Encoder $[x, c] \to$ ReLU layer $\to \mu, \log\sigma^2$; decoder $[z, c] \to$ ReLU layer $\to$ logits of $x$.

    Args:
        n_features: width of $x$ and of $c$.
        n_hidden: width of both hidden layers.
        n_latent: width of $z$.
        is_conditional: False leaves $c$ out everywhere, for the control.
        is_binary: 0/1 features with a Bernoulli likelihood; False for real features with squared error.
        generator: source of the initial weights.
    """

    def __init__(
        self,
        n_features: int,
        *,
        n_hidden: int = 256,
        n_latent: int = LATENT,
        is_conditional: bool = True,
        is_binary: bool = True,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        n_condition = n_features if is_conditional else 0
        with seeded(generator):
            self.encoder = nn.Linear(n_features + n_condition, n_hidden)
            self.mean = nn.Linear(n_hidden, n_latent)
            self.log_variance = nn.Linear(n_hidden, n_latent)
            self.hidden = nn.Linear(n_latent + n_condition, n_hidden)
            self.decoder = nn.Linear(n_hidden, n_features)
        self.n_latent, self.n_condition, self.is_binary = n_latent, n_condition, is_binary
        self.to(generator.device)

    def encode(
        self, x: Float[Tensor, "b f"], c: Float[Tensor, "b f"]
    ) -> tuple[Float[Tensor, "b l"], Float[Tensor, "b l"]]:
        r"""$\mu$ and $\log\sigma^2$ of the code of a neighbour `x` of a centre `c`."""
        h = self.encoder(torch.cat([x, c[:, : self.n_condition]], dim=1)).relu()
        return self.mean(h), self.log_variance(h)

    def decode(self, z: Float[Tensor, "b l"], c: Float[Tensor, "b f"]) -> Float[Tensor, "b f"]:
        """Logits of the neighbour's features (their mean, for real features)."""
        logits: Tensor = self.decoder(self.hidden(torch.cat([z, c[:, : self.n_condition]], dim=1)).relu())
        return logits

    def likely(self, logits: Float[Tensor, "b f"]) -> Float[Tensor, "b f"]:
        """Expected features from the decoder's outputs."""
        return logits.sigmoid() if self.is_binary else logits


def kl_to_standard_normal(mean: Float[Tensor, "b l"], log_variance: Float[Tensor, "b l"]) -> Float[Tensor, " b"]:
    r"""$-\tfrac12\sum(1 + \log\sigma^2 - \mu^2 - \sigma^2)$, the divergence of the code from $\mathcal N(0, I)$."""
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1)


def negative_elbo(
    model: NeighborVAE, x: Float[Tensor, "b f"], c: Float[Tensor, "b f"], *, generator: torch.Generator
) -> Float[Tensor, " b"]:
    r"""Reconstruction error plus KL of each pair, in nats: an upper bound of $-\log p(x \mid c)$, with one draw of $z$.

    Args:
        model: the generator.
        x: neighbours, raw (0/1 for a binary model): cross-entropy on normalised rows would mean nothing.
        c: their centres.
        generator: source of $\epsilon$ in $z = \mu + \sigma\epsilon$.
    """
    mean, log_variance = model.encode(x, c)
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    logits = model.decode(mean + (0.5 * log_variance).exp() * noise, c)
    error = F.binary_cross_entropy_with_logits if model.is_binary else F.mse_loss
    return error(logits, x, reduction="none").sum(1) + kl_to_standard_normal(mean, log_variance)


def fit_generator(
    model: NeighborVAE,
    x: Float[Tensor, "n f"],
    pairs: Int[Tensor, "2 p"],
    *,
    steps: int,
    batch_size: int = 64,
    lr: float = 0.01,
    on_step: Callable[[int, NeighborVAE], None] | None = None,
    generator: torch.Generator,
) -> list[float]:
    """Train on (centre, neighbour) pairs with Adam; batches run through the shuffled pairs, epoch after epoch.

    Args:
        model: the generator, trained in place.
        x: raw features of all nodes.
        pairs: centres and neighbours.
        steps: optimiser steps.
        batch_size: pairs per step.
        lr: learning rate.
        on_step: called after every step with its number, from 1; for choosing among the steps, see `DropoutScorer`.
        generator: on the device of `x`; shuffles and draws codes.

    Returns:
        The mean loss of every step, in nats. Raises `ValueError` for no pairs.
    """
    if pairs.shape[1] == 0:
        raise ValueError("pairs must hold at least one pair, got none: the graph has no edges")
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    queue, losses = pairs.new_empty(0), []
    for step in range(1, steps + 1):
        while len(queue) < batch_size:
            queue = torch.cat([queue, torch.randperm(pairs.shape[1], generator=generator, device=pairs.device)])
        batch, queue = queue[:batch_size], queue[batch_size:]
        centers, neighbors = pairs[:, batch]
        optimizer.zero_grad()
        loss = negative_elbo(model, x[neighbors], x[centers], generator=generator).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if on_step is not None:
            on_step(step, model)
    return losses


class NeighborSampler:
    r"""Virtual neighbours $\bar x_i = \mathrm{dec}(z_i, x_i)$, $z_i \sim \mathcal N(0, I)$, with rows of sum one.

    The contribution of the condition to the hidden layer is the same in all draws and is computed once; no gradient
    is recorded, so none can reach the generator.

    Args:
        model: a trained generator.
        x: raw features of all nodes; left unchanged.
    """

    @torch.no_grad()
    def __init__(self, model: NeighborVAE, x: Float[Tensor, "n f"]) -> None:
        weight = model.hidden.weight
        self.model, self.n_nodes = model, len(x)
        self.from_condition = x[:, : model.n_condition] @ weight[:, model.n_latent :].T + model.hidden.bias
        self.from_code = weight[:, : model.n_latent].T.clone()

    @torch.no_grad()
    def __call__(self, generator: torch.Generator) -> Float[Tensor, "n f"]:
        """One new draw for every node."""
        z = torch.randn((self.n_nodes, self.model.n_latent), generator=generator, device=self.from_code.device)
        logits = self.model.decoder(torch.addmm(self.from_condition, z, self.from_code).relu_())
        if not self.model.is_binary:
            return logits
        return row_normalized(logits.sigmoid_())
