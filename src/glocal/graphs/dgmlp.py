r"""DGMLP: propagate without weights, weigh the steps of each node by its smoothness, then a residual perceptron.

Zhang et al., *Evaluating Deep Graph Neural Networks* (arXiv:2108.00955).
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from glocal.graphs.sparse import SparseOperator, propagation_operator

TINY = 1e-10


def propagated_features(operator: SparseOperator, x: Float[Tensor, "n f"], steps: int) -> Float[Tensor, "hops n f"]:
    r"""$X^{(k)} = \hat{A}^k X$ for $k = 0, \dots, K$, computed once; nothing is trained.

    Args:
        operator: $\hat{A}$.
        x: features $X$.
        steps: $K$.

    Source: Wu et al., SGC, ICML 2019; the pre-computation that DGMLP shares with it.
    """
    hops = [x]
    for _ in range(steps):
        hops.append(operator @ hops[-1])
    return torch.stack(hops)


def limit_features(edge_index: Int[Tensor, "2 e"], x: Float[Tensor, "n f"], *, r: float = 0.5) -> Float[Tensor, "n f"]:
    r"""$X^{(\infty)}$: where propagation ends, computed per connected component.

    In a component with $n_c$ nodes and $m_c$ undirected edges,

    $$x_v^{(\infty)} = \sum_j \frac{(d_v + 1)^r (d_j + 1)^{1 - r}}{2 m_c + n_c} x_j.$$

    An isolated node keeps its own features.

    Args:
        edge_index: both directions of every undirected edge, without loops.
        x: features.
        r: exponent of the normalisation, see `propagation_operator`.

    Source: the over-smoothed features of the paper; its code uses the weights of $r = 0$ for every $r$.
    """
    n = len(x)
    source, target = edge_index.cpu().numpy()
    graph = csr_matrix((np.ones(len(source)), (source, target)), shape=(n, n))
    n_components, labels = connected_components(graph, directed=False)
    component = torch.from_numpy(labels).long().to(x.device)
    degrees = torch.bincount(edge_index[0], minlength=n).to(x.dtype) + 1  # with the loop
    # 2 m_c + n_c is the sum of the degrees with loops
    volume = x.new_zeros(n_components).index_add_(0, component, degrees)
    sums = x.new_zeros(n_components, x.shape[1]).index_add_(0, component, degrees[:, None] ** (1 - r) * x)
    return degrees[:, None] ** r * (sums / volume[:, None])[component]


def node_smoothing_level(hops: Float[Tensor, "hops n f"], limit: Float[Tensor, "n f"]) -> Float[Tensor, "hops n"]:
    r"""$\mathrm{NSL}_v(k) = \cos(x_v^{(k)}, x_v^{(0)}) \, (1 - \cos(x_v^{(k)}, x_v^{(\infty)}))$.

    High while the features are like the node's own and far from the over-smoothed limit. Cosines of features
    with norms below $10^{-10}$ count as zero.

    Args:
        hops: $X^{(0)}, \dots, X^{(K)}$.
        limit: $X^{(\infty)}$.

    Source: the node smoothing level of the paper; its mean over the nodes is the graph smoothing level GSL.
    """
    own = F.cosine_similarity(hops, hops[:1], dim=-1, eps=TINY)
    smoothed = F.cosine_similarity(hops, limit[None], dim=-1, eps=TINY)
    return own * (1 - smoothed)


def step_weights(smoothing: Float[Tensor, "hops n"], temperature: float = 1.0) -> Float[Tensor, "hops n"]:
    r"""$w_v(k) = \mathrm{softmax}_k(\mathrm{NSL}_v(k) / T)$: each node's share of each propagation step.

    Args:
        smoothing: $\mathrm{NSL}_v(k)$ for $k = 0, \dots, K$.
        temperature: $T$; large values give the uniform average, small ones the best step.

    Raises:
        ValueError: for a temperature that is not positive.

    Source: the node-adaptive combination of DGMLP.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    return (smoothing / temperature).softmax(0)


def combined_features(hops: Float[Tensor, "hops n f"], weights: Float[Tensor, "hops n"]) -> Float[Tensor, "n f"]:
    r"""$\hat{x}_v = \sum_k w_v(k) \, x_v^{(k)}$. Source: the node-adaptive combination of DGMLP."""
    return torch.einsum("kn,knf->nf", weights, hops)


def dgmlp_features(
    edge_index: Int[Tensor, "2 e"],
    x: Float[Tensor, "n f"],
    steps: int,
    *,
    temperature: float = 1.0,
    r: float = 0.5,
) -> Float[Tensor, "n f"]:
    r"""The node-adaptive combination that DGMLP's perceptron reads; no parameter, no label.

    Args:
        edge_index: both directions of every undirected edge, without loops.
        x: features $X$.
        steps: propagation depth $D_p = K$.
        temperature: $T$ of the softmax over steps.
        r: exponent of the normalisation.
    """
    hops = propagated_features(propagation_operator(edge_index, len(x), r=r, dtype=x.dtype), x, steps)
    smoothing = node_smoothing_level(hops, limit_features(edge_index, x, r=r))
    return combined_features(hops, step_weights(smoothing, temperature))


def mean_features(hops: Float[Tensor, "hops n f"]) -> Float[Tensor, "n f"]:
    r"""$\frac{1}{K+1} \sum_k X^{(k)}$: every node weighs every step alike (S2GC without its residual term)."""
    return hops.mean(0)


def decaying_features(hops: Float[Tensor, "hops n f"]) -> Float[Tensor, "n f"]:
    r"""Steps weighed by $\mathrm{softmax}_k(-k)$, the same for all nodes."""
    weights = (-torch.arange(len(hops), dtype=hops.dtype, device=hops.device)).softmax(0)
    return torch.einsum("k,knf->nf", weights, hops)


def concatenated_features(hops: Float[Tensor, "hops n f"], kept: Sequence[int]) -> Float[Tensor, "n g"]:
    """Some steps side by side, the input of SIGN."""
    return torch.cat([hops[k] for k in kept], dim=-1)
