r"""POT: provable training for graph contrastive learning (Yu et al., NeurIPS 2023, arXiv:2309.13944).

Node compactness: a lower bound, by bound propagation, of how much closer a node's embedding is to its own positive
than to the others, whatever edges within a budget are deleted. All functions treat `runs` networks side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from glocal.graphs.pot_views import Pattern, propagate
from glocal.graphs.sparse import SparseOperator

VARIANTS = ("sound", "edgewise", "official")


@dataclass(frozen=True)
class Encoder:
    r"""Weights of two graph convolutions, $Z = \sigma(\hat A\,\sigma(\hat A X W^1 + b^1) W^2 + b^2)$.

    $\sigma(p) = \max(p, 0) + a \min(p, 0)$ with slope $a \in [0, 1]$, after both layers.
    """

    weight1: Float[Tensor, "runs f h"]
    bias1: Float[Tensor, "runs 1 h"]
    weight2: Float[Tensor, "runs h d"]
    bias2: Float[Tensor, "runs 1 d"]
    slope: Float[Tensor, "runs 1 1"]

    def activation(self, p: Float[Tensor, "runs n c"]) -> Float[Tensor, "runs n c"]:
        r"""$\sigma(p)$."""
        if self.slope.requires_grad or bool(self.slope.any()):
            return p.relu() - self.slope * (-p).relu()
        return p.relu()

    def messages(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "runs n h"]:
        r"""$M = X W^1$, the same for every view."""
        return torch.matmul(x, self.weight1)


@dataclass(frozen=True)
class Hidden:
    """What one view gives: pre-activations of both layers and embeddings."""

    pre1: Float[Tensor, "runs n h"]
    pre2: Float[Tensor, "runs n d"]
    embeddings: Float[Tensor, "runs n d"]


def encode(encoder: Encoder, messages: Float[Tensor, "runs n h"], operator: SparseOperator) -> Hidden:
    """Both layers on one view; `messages` are `encoder.messages(x)`."""
    pre1 = propagate(operator, messages) + encoder.bias1
    pre2 = propagate(operator, encoder.activation(pre1) @ encoder.weight2) + encoder.bias2
    return Hidden(pre1, pre2, encoder.activation(pre2))


def contrast_weights(embeddings: Float[Tensor, "runs n d"]) -> Float[Tensor, "runs n d"]:
    r"""$w_i = \bar z_i - \frac{1}{n-1}\sum_{j \ne i} \bar z_j$ of the other view's unit embeddings $\bar z$.

    $z_i \cdot w_i$ is the similarity to the own positive minus the mean similarity to the negatives.

    Source: the definition of node compactness.
    """
    unit = F.normalize(embeddings, dim=-1)
    n = unit.shape[1]
    return (n * unit - unit.sum(1, keepdim=True)) / (n - 1)


@dataclass(frozen=True)
class EntryRange:
    r"""Upper bounds $U$ of the entries of $\hat A$, and lower bounds, which are zero outside the diagonal."""

    high: SparseOperator
    low_loops: Float[Tensor, "n 1"]

    def bounds(
        self, low: Float[Tensor, "runs n c"], high: Float[Tensor, "runs n c"]
    ) -> tuple[Float[Tensor, "runs n c"], Float[Tensor, "runs n c"]]:
        r"""Bounds of $\hat A M$ for all $\hat A \in [L, U]$ with $L \ge 0$ and all $M$ between `low` and `high`.

        With $m^\pm = \max(\pm m, 0)$, the largest $a m$ with $a \in [L, U]$ is $U m^+ - L m^-$, the smallest is
        $L m^+ - U m^-$; $M$ is at an end. With `low = high = M` these are
        $\frac{U+L}{2} M \pm \frac{U-L}{2} |M|$.
        """
        least = self.low_loops * low.relu() - propagate(self.high, (-low).relu())
        return least, propagate(self.high, high.relu()) - self.low_loops * (-high).relu()


def entry_range(graph: Pattern, bounds: Float[Tensor, "2 e"], runs: int) -> EntryRange:
    """Operators of the entry bounds (see `entry_bounds`), computed once per drop rate.

    Raises:
        ValueError: if a lower bound outside the diagonal is not zero.
    """
    low, high = bounds
    if bool((low * ~graph.is_loop).any()):
        raise ValueError("lower bounds of entries outside the diagonal must be 0, since every edge may be deleted")
    return EntryRange(graph.operator(high.expand(runs, -1)), low[graph.is_loop, None])


@dataclass(frozen=True)
class Relaxation:
    r"""Lines around the activation: $\alpha p \le \sigma(p) \le \alpha p + \gamma$ with $\gamma = \alpha \beta_U$.

    Both lines have the same slope, so the sign of a coefficient decides about $\gamma$ only.
    """

    alpha: Float[Tensor, "runs n c"]
    offset: Float[Tensor, "runs n c"]


class _Chord(torch.autograd.Function):
    r"""$s = \frac{u^+}{u^+ + l^-}$ and $s\,l^-$ of intervals $[l, u]$, gradient written out to save memory."""

    @staticmethod
    def forward(ctx: Any, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        above, below = high.clamp_min(0), low.clamp_max(0).neg_()
        inverse = above.add(below).clamp_min_(1e-30).reciprocal_()
        share = above.mul_(inverse)  # 1 if l >= 0, 0 if u <= 0
        ctx.save_for_backward(below, share, inverse)
        return share, share * below

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_share: Tensor, by_offset: Tensor) -> tuple[Tensor, Tensor]:
        below, share, inverse = ctx.saved_tensors
        rest, by_share = below * inverse, by_share * inverse  # 1 - s where the interval is not [0, 0]
        by_high = (by_offset * rest).add_(by_share).mul_(rest).mul_(share > 0)
        by_low = by_share.sub_(share * by_offset).mul_(share).mul_(below > 0)
        return by_low, by_high


def relax(
    low: Float[Tensor, "runs n c"], high: Float[Tensor, "runs n c"], slope: Float[Tensor, "runs 1 1"]
) -> Relaxation:
    r"""Relaxation of $\sigma$ on $[l, u]$: slope $\alpha = \frac{u - a l}{u - l}$ if $l < 0 < u$, else $\sigma$ itself.

    $\gamma = \alpha \beta_U = \frac{(a - 1) u l}{u - l}$ is what the chord lies above its parallel through zero. With
    $u^+$ and $l^- = \max(-l, 0)$ in place of $u$ and $-l$ the formulas hold in all three cases.

    Source: the bound propagation of the paper; the relaxation is that of CROWN for slopes $a \in [0, 1]$.
    """
    share, offset = _Chord.apply(low, high)
    if slope.requires_grad or bool(slope.any()):
        return Relaxation(slope + (1 - slope) * share, (1 - slope) * offset)
    return Relaxation(share, offset)


def relaxations(
    encoder: Encoder,
    messages: Float[Tensor, "runs n h"],
    entries: EntryRange,
    *,
    clean: SparseOperator,
    variant: str = "sound",
) -> tuple[Relaxation, Relaxation]:
    r"""Relaxations of both layers from their pre-activation intervals.

    `"sound"` lets $H^1$ range over its own interval; the other variants keep it at its value on the clean graph,
    as paper and code do.

    Raises:
        ValueError: for an unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    low, high = entries.bounds(messages, messages)
    low, high = low + encoder.bias1, high + encoder.bias1
    first = relax(low, high, encoder.slope)
    if variant == "sound":
        low, high = encoder.activation(low), encoder.activation(high)
        middle, half = (low + high) / 2 @ encoder.weight2, (high - low) / 2 @ encoder.weight2.abs()
        low, high = entries.bounds(middle - half, middle + half)
    else:
        hidden = encoder.activation(propagate(clean, messages) + encoder.bias1)
        fixed = hidden @ encoder.weight2
        low, high = entries.bounds(fixed, fixed)
    return first, relax(low + encoder.bias2, high + encoder.bias2, encoder.slope)


def backward_coefficients(
    encoder: Encoder, second: Relaxation, w: Float[Tensor, "runs n d"]
) -> tuple[Float[Tensor, "runs n h"], Float[Tensor, "runs n"]]:
    r"""$\tilde W_i = (\alpha^2_i \odot w_i)(W^2)^\top$ and $\tilde b_i$, the linear lower bound seen from layer 1."""
    weighted = second.alpha * w
    constant = (weighted * encoder.bias2 - second.offset * (-w).relu()).sum(-1)
    return weighted @ encoder.weight2.mT, constant


def compactness_bound(
    encoder: Encoder,
    messages: Float[Tensor, "runs n h"],
    operator: SparseOperator,
    layers: tuple[Relaxation, Relaxation],
    w: Float[Tensor, "runs n d"],
    *,
    variant: str = "sound",
    pre1: Float[Tensor, "runs n h"] | None = None,
) -> Float[Tensor, "runs n"]:
    r"""Lower bound $f_i(\hat A) \le z_i(\hat A) \cdot w_i$ at one view.

    $$f_i(\hat A) = \sum_j \hat A_{ij} \Bigl[ \tilde W_i \cdot (\alpha^1_j \odot p_j)
    + \min(\tilde W_i, 0) \cdot \gamma^1_j \Bigr] + \tilde b_i, \qquad p = \hat A X W^1 + b^1.$$

    Since both lines of a relaxation share $\alpha$, the sum over $j$ is a product with $\hat A$: no tensor per edge.
    `variant="official"` contracts $p_j$ with node $j$'s own $\tilde W_j$ instead, which bounds nothing.

    Args:
        encoder: the weights.
        messages: `encoder.messages(x)`.
        operator: the view.
        layers: from `relaxations`, of the same variant.
        w: from `contrast_weights` of the other view.
        variant: `"sound"` or `"edgewise"` (both as above; they differ in `layers`), or `"official"`.
        pre1: $p$ at the view, if `encode` has computed it already.

    Source: the theorem on node compactness; the official form is that of the released code.
    """
    first, second = layers
    back, constant = backward_coefficients(encoder, second, w)
    if variant == "official":
        own = back * first.alpha
        scalar = (own * messages).sum(-1, keepdim=True)
        bias = (own * encoder.bias1 + back.clamp_max(0) * first.offset).sum(-1, keepdim=True)
        return propagate(operator, propagate(operator, scalar) + bias)[..., 0] + constant
    if pre1 is None:
        pre1 = propagate(operator, messages) + encoder.bias1
    linear, offset = propagate(operator, first.alpha * pre1), propagate(operator, first.offset)
    return (back * linear - (-back).relu() * offset).sum(-1) + constant


def certified_minimum(
    encoder: Encoder,
    messages: Float[Tensor, "runs n h"],
    graph: Pattern,
    bounds: Float[Tensor, "2 e"],
    layers: tuple[Relaxation, Relaxation],
    w: Float[Tensor, "runs n d"],
    *,
    chunk: int = 20000,
) -> Float[Tensor, "runs n"]:
    r"""A number below $z_i(\hat A) \cdot w_i$ for every $\hat A$ between the entry bounds at once.

    $f_i$ is quadratic in the entries, $\sum_j \hat A_{ij} (q_{ij} + \sum_k \hat A_{jk}\, g_{ijk})$ plus a constant.
    Each inner sum, then each outer one, takes the worse end of its entries.

    Args:
        encoder: the weights.
        messages: `encoder.messages(x)`.
        graph: the pattern.
        bounds: from `entry_bounds`.
        layers: from `relaxations`, variant `"sound"`.
        w: from `contrast_weights`.
        chunk: entries treated at once; memory is `chunk` times the mean row length times the hidden width.
    """
    first, second = layers
    back, constant = backward_coefficients(encoder, second, w)
    low, high = bounds
    lengths = graph.starts.diff()
    parts: list[list[Tensor]] = []
    for some in torch.arange(len(graph.rows), device=low.device).split(chunk):
        i, j = graph.rows[some], graph.columns[some]
        count = lengths[j]
        entry = torch.arange(len(some), device=low.device).repeat_interleave(count)
        within = torch.arange(len(entry), device=low.device) - (count.cumsum(0) - count)[entry]
        inner = graph.starts[j][entry] + within  # entries (j, k) of row j, for each (i, j)
        parts.append([])
        for run in range(len(w)):
            coefficient = back[run, i] * first.alpha[run, j]
            q = coefficient @ encoder.bias1[run, 0] + (back[run, i].clamp_max(0) * first.offset[run, j]).sum(-1)
            g = (coefficient[entry] * messages[run, graph.columns[inner]]).sum(-1)
            q = q.index_add(0, entry, torch.minimum(low[inner] * g, high[inner] * g))
            parts[-1].append(torch.minimum(low[some] * q, high[some] * q))
    terms = torch.cat([torch.stack(part) for part in parts], 1)
    return constant.index_add(1, graph.rows, terms)


def compactness_loss(bounds: Sequence[Float[Tensor, "runs n"]]) -> Float[Tensor, " runs"]:
    r"""Cross-entropy of the compactness with target one, $\frac1n \sum_i \log(1 + e^{-f_i})$, averaged over views."""
    return torch.stack([F.softplus(-bound).mean(-1) for bound in bounds]).mean(0)
