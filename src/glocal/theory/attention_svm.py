"""One attention layer trained by gradient descent selects tokens (Tarzanagh et al. 2023, arXiv:2308.16898).

Sizes: `runs` independent problems side by side, `n` examples, `tokens` per example, `d` features.
The convex programs that predict the direction of the trained weights are in `attention_svm_solvers`.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glocal.theory.attention_svm_data import TokenData

MACHINE_EPS = torch.finfo(torch.float64).eps


@runtime_checkable
class Head(Protocol):
    """The fixed prediction head $h$ of each run, applied to the attention output $u_i = X_i^\\top s_i$."""

    def __call__(self, pooled: Float[Tensor, "runs m d"]) -> Float[Tensor, "runs m"]: ...

    def gradient(self, pooled: Float[Tensor, "runs m d"]) -> Float[Tensor, "runs m d"]: ...

    def subset(self, index: Int[Tensor, " m"]) -> "Head": ...


@dataclass(frozen=True)
class LinearHead:
    """$h(u) = v^\\top u$ (the head of all theorems)."""

    v: Float[Tensor, "runs d"]

    def __call__(self, pooled: Float[Tensor, "runs m d"]) -> Float[Tensor, "runs m"]:
        """Predictions $h(u)$."""
        return (pooled @ self.v[..., None]).squeeze(-1)

    def gradient(self, pooled: Float[Tensor, "runs m d"]) -> Float[Tensor, "runs m d"]:
        """$\\nabla h(u) = v$, whatever $u$."""
        return self.v[:, None].expand_as(pooled)

    def subset(self, index: Int[Tensor, " m"]) -> "LinearHead":
        """The heads of the runs at `index`."""
        return LinearHead(self.v[index])


@dataclass(frozen=True)
class ReLUHead:
    r"""$h(u) = \mathbf 1^\top \mathrm{ReLU}(V^\top u)$, a fixed two-layer network for the multi-token runs."""

    hidden: Float[Tensor, "runs d hidden"]

    def __call__(self, pooled: Float[Tensor, "runs m d"]) -> Float[Tensor, "runs m"]:
        """Predictions $h(u)$."""
        return torch.relu(pooled @ self.hidden).sum(-1)

    def gradient(self, pooled: Float[Tensor, "runs m d"]) -> Float[Tensor, "runs m d"]:
        r"""$\nabla h(u) = V\,\mathbb 1[V^\top u > 0]$."""
        return (pooled @ self.hidden > 0).to(pooled.dtype) @ self.hidden.mT

    def subset(self, index: Int[Tensor, " m"]) -> "ReLUHead":
        """The heads of the runs at `index`."""
        return ReLUHead(self.hidden[index])


def attention_probs(data: TokenData, weights: Float[Tensor, "runs d d"]) -> Float[Tensor, "runs n tokens"]:
    r"""Softmax probabilities $s_i = \mathrm{softmax}(X_i W z_i)$ of the tokens of each example.

    Args:
        data: tokens and queries.
        weights: $W$; its left side meets the token, its right side the query (it is not symmetric).

    Source: the model, with $s_i$ as in the official `SelfAttn` module.
    """
    keys = data.queries @ weights.mT  # rows (W z_i)^T
    return (data.tokens @ keys[..., None]).squeeze(-1).softmax(-1)


def token_scores(data: TokenData, head: Head) -> Float[Tensor, "runs n tokens"]:
    r"""Score $\gamma_{it} = Y_i\,h(x_{it})$: what attending to token $t$ alone is worth to example $i$.

    Source: definition of the token score; $\mathrm{opt}_i = \arg\max_t \gamma_{it}$.
    """
    runs, n, tokens, d = data.tokens.shape
    return data.labels[..., None] * head(data.tokens.reshape(runs, n * tokens, d)).reshape(runs, n, tokens)


def attention_loss(data: TokenData, head: Head, weights: Float[Tensor, "runs d d"]) -> Float[Tensor, " runs"]:
    r"""Training objective $\mathcal L(W) = \frac1n \sum_i \log(1 + e^{-Y_i h(X_i^\top s_i)})$ of each run."""
    pooled = (attention_probs(data, weights)[:, :, None] @ data.tokens).squeeze(2)
    return F.softplus(-data.labels * head(pooled)).mean(-1)


def loss_gradient(data: TokenData, head: Head, weights: Float[Tensor, "runs d d"]) -> Float[Tensor, "runs d d"]:
    r"""Closed-form gradient of the objective,

    $$\nabla\mathcal L(W) = \frac1n \sum_i X_i^\top (\mathrm{diag}(s_i) - s_i s_i^\top)\, g_i\, z_i^\top, \qquad
    g_i = Y_i\,\ell'(Y_i f_i)\, X_i \nabla h(X_i^\top s_i).$$

    It stays accurate in relative terms when the softmax saturates: $(\mathrm{diag}(s) - ss^\top)g$ does not
    change when a constant is subtracted from $g$, and with the entry of the selected token as that constant
    no term of order one is left to cancel against another. Automatic differentiation loses all digits once
    $1 - \max_t s_{it} < 10^{-16}$.

    Source: chain rule; for the linear head the paper's formula with token scores, $g_i = \ell'_i \gamma_i$.
    """
    probs = attention_probs(data, weights)
    pooled = (probs[:, :, None] @ data.tokens).squeeze(2)
    slopes = -data.labels * torch.sigmoid(-data.labels * head(pooled))  # Y l'(Y f)
    upstream = (data.tokens @ (slopes[..., None] * head.gradient(pooled))[..., None]).squeeze(-1)  # dL/ds
    upstream = upstream - upstream.gather(-1, probs.argmax(-1, keepdim=True))
    dlogits = probs * (upstream - (probs * upstream).sum(-1, keepdim=True))
    dkeys = (dlogits[:, :, None] @ data.tokens).squeeze(2)
    return dkeys.mT @ data.queries / data.tokens.shape[1]


@dataclass(frozen=True)
class Trajectory:
    """Weights along training: `weights[:, j]` is $W$ (or $KQ^\\top$) after `steps[j]` updates."""

    steps: tuple[int, ...]
    weights: Float[Tensor, "runs checkpoints d d"]

    @property
    def final(self) -> Float[Tensor, "runs d d"]:
        """The trained weights."""
        return self.weights[:, -1]


def uniform_init(
    runs: int, d: int, *, generator: torch.Generator, width: int | None = None
) -> Float[Tensor, "runs d width"]:
    r"""The official initialisation: every entry uniform in $\pm1/\sqrt d$, a linear layer's default."""
    size = (runs, d, width or d)
    uniform = torch.rand(size, generator=generator, dtype=torch.float64, device=generator.device)
    return (2 * uniform - 1) / math.sqrt(d)


def train_attention(
    data: TokenData,
    head: Head,
    init: Float[Tensor, "runs d d"] | tuple[Float[Tensor, "runs d width"], Float[Tensor, "runs d width"]],
    *,
    steps: int = 2000,
    lr: float = 0.1,
    is_normalized: bool = True,
    epsilon: float = MACHINE_EPS,
    weight_decay: float = MACHINE_EPS,
    record_every: int = 100,
) -> Trajectory:
    r"""Full-batch gradient descent on $W$, or on the factors of $W = KQ^\top$, all runs side by side.

    Normalised: $\theta \leftarrow \theta - \eta\,\nabla_\theta / (\lVert\nabla_\theta\rVert_F + \epsilon)$
    for $\theta = W$, or for $K$ and $Q$ each with its own norm, where
    $\nabla_K = GQ + 2\lambda K$, $\nabla_Q = G^\top K + 2\lambda Q$ and $G = \nabla_W\mathcal L$.

    Args:
        data: the problems.
        head: the fixed heads.
        init: the start $W_0$, or the pair $(K_0, Q_0)$; which of the two decides what is trained.
        steps: number of updates.
        lr: step size $\eta$; with normalisation, the Frobenius length of every step.
        is_normalized: False for plain gradient descent with a constant step.
        epsilon: $\epsilon$ of the normalisation; once the gradient is that small, training comes to rest.
        weight_decay: $\lambda$ of the factorised objective, the machine epsilon in the official code.
        record_every: steps between two recorded weights; the start and the end are always recorded.

    Returns:
        The recorded weights; memory is `runs * (steps / record_every) * d**2` numbers.

    Raises:
        ValueError: if `steps`, `lr` or `record_every` is not positive.

    Source: official repository, "Experimental Details" of its README.
    """
    for name, value in (("steps", steps), ("lr", lr), ("record_every", record_every)):
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
    if isinstance(init, tuple) and init[0].shape != init[1].shape:
        raise ValueError(
            f"the factors K and Q must have one shape, got {tuple(init[0].shape)} and "
            f"{tuple(init[1].shape)}: draw both with the same width"
        )

    def step(theta: Tensor, gradient: Tensor) -> Tensor:
        if is_normalized:
            gradient = gradient / (gradient.norm(dim=(-2, -1), keepdim=True) + epsilon)
        return theta - lr * gradient

    factors = init if isinstance(init, tuple) else (init,)
    recorded_steps, recorded = [0], [combined_weights(factors)]
    for k in range(1, steps + 1):
        gradient = loss_gradient(data, head, combined_weights(factors))
        if len(factors) == 1:
            factors = (step(factors[0], gradient),)
        else:
            keys, queries = factors
            factors = (
                step(keys, gradient @ queries + 2 * weight_decay * keys),
                step(queries, gradient.mT @ keys + 2 * weight_decay * queries),
            )
        if k % record_every == 0 or k == steps:
            recorded_steps.append(k)
            recorded.append(combined_weights(factors))
    return Trajectory(tuple(recorded_steps), torch.stack(recorded, 1))


def combined_weights(factors: tuple[Float[Tensor, "runs d _"], ...]) -> Float[Tensor, "runs d d"]:
    """$W$ itself for one factor, $KQ^\\top$ for two."""
    return factors[0] if len(factors) == 1 else factors[0] @ factors[1].mT


def selected_tokens(data: TokenData, weights: Float[Tensor, "runs d d"]) -> Int[Tensor, "runs n"]:
    r"""Tokens that the trained attention picks, $\alpha_i = \arg\max_t s_{it}$; scores play no part in it."""
    return attention_probs(data, weights).argmax(-1)


def correlation(a: Float[Tensor, "*batch d e"], b: Float[Tensor, "*batch d e"]) -> Float[Tensor, "*batch"]:
    r"""Cosine of two matrices, $\langle A, B\rangle / \lVert A\rVert_F \lVert B\rVert_F$."""
    return (a * b).sum((-2, -1)) / (a.norm(dim=(-2, -1)) * b.norm(dim=(-2, -1)))


def is_clear_cut(
    data: TokenData, probs: Float[Tensor, "runs n tokens"], low: float = 1e-6, high: float = 1e-3
) -> Bool[Tensor, " runs"]:
    r"""The official rule for keeping a multi-token run: its kept and dropped tokens can be told apart.

    A run is kept if some label is $-1$, no probability lies in (`low`, `high`] and some probability is at most
    `low`.

    Source: official repository, multi-token notebook.
    """
    has_negative = (data.labels < 0).any(1)
    is_between = ((probs > low) & (probs <= high)).flatten(1).any(1)
    has_dropped = (probs <= low).flatten(1).any(1)
    return has_negative & ~is_between & has_dropped
