r"""The loss that WD-GLT adds to mask training: how far apart the outputs of the classes are, by optimal transport.

Hui et al., *Rethinking Graph Lottery Tickets: Graph Sparsity Matters* (ICLR 2023, arXiv:2305.02190), in the form of
the baseline in TEDDY's official code.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

FLOOR = -80.0  # smallest exponent; e^-80 is negligible and still a normal number in single precision


def sinkhorn_distance(
    cost: Float[Tensor, "*b n m"],
    weights: Float[Tensor, "*b n"],
    other_weights: Float[Tensor, "*b m"],
    *,
    regularization: float = 1e-3,
    n_steps: int = 10,
) -> Float[Tensor, "*b"]:
    r"""$\langle P, C \rangle$ with $P$ from Sinkhorn's iterations in log space.

    With weights $a, b$ and dual potentials $u, v$ (over $\epsilon$; $v = \log b$ at first) an iteration is
    $u_i = \log a_i - \log \sum_j e^{v_j - C_{ij} / \epsilon}$, then the same for $v$ with $b$, and at the end
    $P_{ij} = e^{u_i + v_j - C_{ij} / \epsilon}$. The more steps and the smaller $\epsilon$, the closer to the
    Wasserstein distance; columns of $P$ sum to $b$ after every step. The steps can be differentiated.

    Args:
        cost: $C$, e.g. distances between the points of two clouds.
        weights: $a$; points of weight zero do not take part.
        other_weights: $b$; its sum must be that of $a$.
        regularization: $\epsilon$.
        n_steps: iterations.

    Raises:
        ValueError: for a regularization or number of steps that is not positive.

    Memory: about 4 `n_steps` matrices like `cost` are kept for the backward pass.
    Source: Cuturi 2013, in the variant that TEDDY's repository uses.
    """
    if regularization <= 0 or n_steps < 1:
        raise ValueError(f"regularization and n_steps must be positive, got {regularization} and {n_steps}")
    scaled, log_a, v = cost / regularization, weights.log(), other_weights.log()
    log_b = v
    for _ in range(n_steps):
        u = log_a - _logsumexp(v[..., None, :] - scaled, -1)
        v = log_b - _logsumexp(u[..., None] - scaled, -2)
    return ((u[..., None] + v[..., None, :] - scaled).clamp_min(FLOOR).exp() * cost).sum((-2, -1))


def _logsumexp(exponents: Tensor, dim: int) -> Tensor:
    """As `torch.logsumexp`, but several times faster where most terms underflow: those are rounded up to e^-80."""
    highest = exponents.detach().amax(dim, keepdim=True)
    return (exponents - highest).clamp_min(FLOOR).exp().sum(dim).log() + highest.squeeze(dim)


def class_separation(
    logits: Float[Tensor, "n k"], *, regularization: float = 1e-3, n_steps: int = 10
) -> Float[Tensor, ""]:
    r"""$\sum_c W(Z_c, Z_{\bar c})$: distances between nodes assigned to a class and the others, in probabilities.

    $Z_c$ are the softmax outputs of the nodes whose largest output is class $c$, $Z_{\bar c}$ those of the other
    nodes, all with equal weights and with Euclidean distances. Classes without nodes, or with all of them, contribute
    nothing. No label is read, so that every edge of the graph can matter, not only those near labelled nodes.

    Args:
        logits: outputs of the nodes.
        regularization: see `sinkhorn_distance`.
        n_steps: see `sinkhorn_distance`.

    Source: the auxiliary loss of Hui et al. 2023; assignment by the largest output as in TEDDY's repository.
    """
    probs, assigned = logits.softmax(1), logits.argmax(1)
    is_member = F.one_hot(assigned, logits.shape[1]).T.bool()
    is_member = is_member[is_member.any(1)]
    if len(is_member) < 2:
        return logits.sum() * 0
    sizes = is_member.sum(1)
    # members of each class first; rows beyond a class's size get weight zero
    members = (~is_member).to(torch.int8).argsort(dim=1, stable=True)[:, : int(sizes.max())]
    cost = torch.cdist(probs[members], probs.expand(len(sizes), -1, -1), compute_mode="donot_use_mm_for_euclid_dist")
    weights = is_member.gather(1, members).to(probs.dtype) / sizes[:, None]
    others = (~is_member).to(probs.dtype) / (~is_member).sum(1, keepdim=True)
    return sinkhorn_distance(cost, weights, others, regularization=regularization, n_steps=n_steps).sum()
