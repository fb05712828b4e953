"""Locality and weight sharing: three one-layer networks on one task (Lahoti et al., ICLR 2024, arXiv:2403.15707).

Sizes: `runs` data sets, each with `models` networks trained on it side by side; `n` images of `k` patches with `d`
pixels. Images enter as `columns` of shape (runs, k, d, n): all networks of a kind are one matrix product away.

Weights have the shape (runs, filters, models, inputs): filters = 1, inputs = d for the convolutional network (CNN),
k and d for the locally connected one (LCN), k and k d for the fully connected one (FCN).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glocal.theory.dsd_data import PatchData

KINDS = ("cnn", "lcn", "fcn")
Weights = Float[Tensor, "runs filters models inputs"]
Columns = Float[Tensor, "runs k d n"]


def soft_threshold(z: Float[Tensor, "*shape"], b: Float[Tensor, "*#shape"] | float) -> Float[Tensor, "*shape"]:
    r"""$\phi_b(z) = \mathrm{ReLU}(z - b) - \mathrm{ReLU}(-z - b)$: zero on $[-b, b]$, shifted towards zero outside.

    Source: the activation of the networks (local signal adaptivity), $b \ge 0$.
    """
    low, high = torch.as_tensor(-b, dtype=z.dtype, device=z.device), torch.as_tensor(b, dtype=z.dtype, device=z.device)
    return z - z.clamp(min=low, max=high)


def as_columns(x: Float[Tensor, "runs n k d"], kind: str = "lcn") -> Columns:
    """Images as the columns that the networks multiply, in the order in memory that saves this kind a copy."""
    if kind == "cnn":  # (runs, d, k, n): all patches side by side
        return x.permute(0, 3, 2, 1).contiguous().transpose(1, 2)
    return x.permute(0, 2, 3, 1).contiguous()


def preactivations(kind: str, weights: Weights, columns: Columns) -> Float[Tensor, "runs k models n"]:
    r"""What unit $s$ sees: $\langle w, x^{(s)}\rangle$, $\langle w_s, x^{(s)}\rangle$ or $\langle w_s, x\rangle$."""
    if kind == "lcn":
        return weights @ columns
    if kind == "cnn":
        shared = weights[:, 0] @ columns.transpose(1, 2).flatten(2)
        return shared.unflatten(2, (columns.shape[1], -1)).transpose(1, 2)
    runs, k, models, inputs = weights.shape
    products = weights.reshape(runs, k * models, inputs) @ columns.reshape(runs, inputs, -1)
    return products.view(runs, k, models, -1)


def network_outputs(
    kind: str, weights: Weights, bias: Float[Tensor, "runs models"], columns: Columns
) -> Float[Tensor, "runs models n"]:
    r"""$f(x) = \sum_{s=1}^k \phi_b(\cdot)$ over the $k$ preactivations, output weights one.

    Source: definition of the three network classes.
    """
    return soft_threshold(preactivations(kind, weights, columns), bias[:, None, :, None]).sum(1)


def loss_gradient(
    kind: str,
    weights: Weights,
    bias: Float[Tensor, "runs models"],
    columns: Columns,
    y: Float[Tensor, "runs models n"],
) -> tuple[Weights, Float[Tensor, "runs models"]]:
    r"""Gradient of $\frac1n\sum_i (f(x_i) - y_i)^2$ in the weights and in $b$.

    With $r_i = f(x_i) - y_i$ and the mask $m_{is} = \mathbb 1[\phi_b(z_{is}) \ne 0]$, unit $s$ receives
    $\frac2n \sum_i r_i m_{is}\,(\text{its input})$, and $b$ receives
    $-\frac2n\sum_{is} r_i m_{is}\,\mathrm{sign}(z_{is})$.
    """
    active = soft_threshold(preactivations(kind, weights, columns), bias[:, None, :, None])
    upstream = (active.sum(1) - y).mul_(2 / y.shape[-1])
    signs = active.sign_()
    in_bias = -(upstream * signs.sum(1)).sum(-1)
    in_units = signs.square_().mul_(upstream[:, None])  # squared signs are the mask
    if kind == "fcn":
        runs, k, models, n = in_units.shape
        flat = in_units.reshape(runs, k * models, n) @ columns.reshape(runs, -1, n).mT
        return flat.view(runs, k, models, -1), in_bias
    if kind == "cnn":
        shared = in_units.transpose(1, 2).flatten(2) @ columns.transpose(1, 2).flatten(2).mT
        return shared[:, None], in_bias
    return in_units @ columns.mT, in_bias


@dataclass(frozen=True)
class LinearProblem:
    r"""All that the linear phase needs of a data set: $u \mapsto \frac1n\sum_i u_iu_i^\top$ and $\frac1n\sum_i y_iu_i$.

    The second moments are formed only if there are at least as many images as inputs.
    """

    features: Float[Tensor, "runs inputs n"]
    second: Float[Tensor, "runs inputs inputs"] | None
    cross: Float[Tensor, "runs models inputs"]


def linear_weights(kind: str, weights: Weights) -> Float[Tensor, "runs models width"]:
    r"""$a$ with $f(x) = \langle a, u\rangle$ at $b = 0$: shared filter, filters side by side, or sum of dense rows."""
    return weights.sum(1) if kind != "lcn" else weights.transpose(1, 2).flatten(2)


def linear_problem(kind: str, columns: Columns, y: Float[Tensor, "runs models n"]) -> LinearProblem:
    r"""Features in which a network with $b = 0$ is linear: $u = \sum_s x^{(s)}$ for the CNN, $u = x$ for the others."""
    u = columns.sum(1) if kind == "cnn" else columns.flatten(1, 2)
    n = u.shape[-1]
    return LinearProblem(u, u @ u.mT / n if n >= u.shape[1] else None, y @ u.mT / n)


def linear_gradient(kind: str, weights: Weights, data: LinearProblem) -> Weights:
    r"""`loss_gradient` at $b = 0$, where the network is $\langle a, u\rangle$ and the gradient in $a$ is $2(Sa - c)$.

    Every row $a$ is a sum of receives the same gradient: a linear FCN never learns which patch a row should serve.
    """
    a = linear_weights(kind, weights)
    n = data.features.shape[-1]
    product = a @ data.features @ data.features.mT / n if data.second is None else a @ data.second
    gradient = 2 * (product - data.cross)
    if kind == "lcn":
        return gradient.unflatten(2, (weights.shape[1], -1)).transpose(1, 2)
    return gradient[:, None].expand_as(weights)


def init_weights(
    kind: str, runs: int, models: int, k: int, d: int, *, scale: float, generator: torch.Generator
) -> Weights:
    r"""Isotropic Gaussian start $N(0, \text{scale}^2/\text{fan-in})$, the same for all models of a run.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    filters, inputs = {"cnn": (1, d), "lcn": (k, d), "fcn": (k, k * d)}[kind]
    w = torch.randn((runs, filters, 1, inputs), generator=generator, device=generator.device, dtype=torch.float64)
    return (w * scale / math.sqrt(inputs)).expand(-1, -1, models, -1)


@dataclass(frozen=True)
class Trained:
    """One network per run and model: the checkpoint of least validation risk."""

    kind: str
    weights: Float[Tensor, "runs filters models inputs"]
    bias: Float[Tensor, "runs models"]
    val_risk: Float[Tensor, "runs models"]

    def outputs(self, data: PatchData) -> Float[Tensor, "runs models n"]:
        """Outputs on other images."""
        return network_outputs(self.kind, self.weights, self.bias, as_columns(data.x, self.kind))

    def risk(self, data: PatchData) -> Float[Tensor, "runs models"]:
        """Mean squared error on other images."""
        return (self.outputs(data) - data.y[:, None]).square().mean(-1)

    def take(self, index: Int[Tensor, " runs"]) -> "Trained":
        """One model of each run."""
        rows = torch.arange(len(index), device=index.device)
        chosen = self.weights.transpose(1, 2)[rows, index][:, :, None]
        return Trained(self.kind, chosen, self.bias[rows, index][:, None], self.val_risk[rows, index][:, None])

    def update(
        self,
        runs: Int[Tensor, " some"],
        weights: Float[Tensor, "some filters models inputs"],
        bias: Float[Tensor, "some models"],
        val_risk: Float[Tensor, "some models"],
    ) -> Bool[Tensor, " some"]:
        """Keep the networks of `runs` with a lower validation risk; tell which runs gained over a thousandth."""
        old = self.val_risk[runs]
        lower = val_risk < old
        self.weights[runs] = torch.where(lower[:, None, :, None], weights, self.weights[runs])
        self.bias[runs] = torch.where(lower, bias, self.bias[runs])
        self.val_risk[runs] = torch.where(lower, val_risk, old)
        return (val_risk < 0.999 * old).any(1)

    def best(self) -> "Trained":
        """In each run the model (the learning rate) of least validation risk."""
        return self.take(self.val_risk.argmin(1))


def train(
    kind: str,
    init: Weights,
    data: PatchData,
    validation: PatchData,
    *,
    lrs: list[float],
    linear_steps: int = 150,
    threshold_steps: int = 250,
    momentum: float = 0.9,
    threshold: float = 0.17,
    linear_check_every: int = 5,
    check_every: int = 25,
    patience: int = 6,
    optimizer: str = "gd",
) -> Trained:
    r"""Full-batch descent on the squared loss in two phases, for all runs and learning rates at once.

    Phase 1 has $b = 0$: the networks are linear and find the signal. Phase 2 has $b = \mathrm{softplus}(\beta)$
    with trainable $\beta$: patches without signal fall silent. With the threshold on from the start, a small
    initialisation would lie in the dead zone of $\phi_b$ and have no gradient at all.

    Args:
        kind: `"cnn"`, `"lcn"` or `"fcn"`.
        init: start, one model per learning rate; see `init_weights`.
        data: training images.
        validation: images that choose the checkpoint; the rule looks at outputs only, so it is equivariant.
        lrs: learning rates, one per model. For CNN and FCN they are divided by $k$: a shared filter sums the
            gradients of $k$ patches, and the $k$ rows of a linear FCN move together.
        linear_steps: steps of phase 1.
        threshold_steps: steps of phase 2.
        momentum: heavy-ball momentum (first moment of Adam).
        threshold: $b$ at the beginning of phase 2; divided by $k$ for the FCN, whose rows share the signal.
        linear_check_every: steps of phase 1 between two looks at the validation risk.
        check_every: steps of phase 2 between two looks.
        patience: phase 2 of a run ends early once this many looks in a row improved none of its networks by more
            than a thousandth.
        optimizer: `"gd"`, or `"adam"` (not equivariant) with second-moment decay 0.999.

    Raises:
        ValueError: for an unknown optimiser, or a number of learning rates that does not match `init`.

    Source: two-step training of the upper bounds, extended to many steps; the learning-rate grid is ours.
    """
    if optimizer not in ("gd", "adam"):
        raise ValueError(f"optimizer must be gd or adam, got {optimizer!r}")
    if len(lrs) != init.shape[2]:
        raise ValueError(f"train needs one model per learning rate, got {init.shape[2]} models and {len(lrs)} rates")
    columns, val_columns = as_columns(data.x, kind), as_columns(validation.x, kind)
    y, val_y = (part.y[:, None].expand(-1, len(lrs), -1) for part in (data, validation))
    k = columns.shape[1]
    options: dict[str, Any] = {"dtype": columns.dtype, "device": columns.device}
    rates = torch.tensor(lrs, **options) / (1 if kind == "lcn" else k)
    weights, betas = init.to(columns.dtype).contiguous().clone(), torch.zeros(y.shape[:2], **options)
    descend = Descent(momentum, optimizer)
    best = Trained(kind, weights.clone(), betas.clone(), torch.full_like(betas, torch.inf))

    linear, val_features = linear_problem(kind, columns, y), linear_problem(kind, val_columns, val_y).features
    everyone = torch.arange(len(y), device=columns.device)
    for step in range(linear_steps + 1):
        if step % linear_check_every == 0 or step == linear_steps:
            val_risk = (linear_weights(kind, weights) @ val_features - val_y).square().mean(-1)
            best.update(everyone, weights, torch.zeros_like(betas), val_risk)
        if step < linear_steps:
            descend("weights", weights, linear_gradient(kind, weights, linear), rates[:, None])

    betas += math.log(math.expm1(threshold / (k if kind == "fcn" else 1)))  # softplus(beta) = threshold
    rows, idle = everyone, torch.zeros_like(everyone)  # runs still in training; their looks without success
    for step in range(1, threshold_steps + 1):
        in_weights, in_bias = loss_gradient(kind, weights, F.softplus(betas), columns, y)
        descend("weights", weights, in_weights, rates[:, None])
        descend("betas", betas, in_bias * betas.sigmoid(), rates)
        if step % check_every == 0 or step == threshold_steps:
            bias = F.softplus(betas)
            val_risk = (network_outputs(kind, weights, bias, val_columns) - val_y).square().mean(-1)
            improved = best.update(rows, weights, bias, val_risk)
            idle = torch.where(improved, 0, idle + 1)
            active = (idle < patience).nonzero()[:, 0]
            if len(active) == 0:
                break
            if len(active) < len(rows):
                rows, idle, weights, betas, y, val_y = (part[active] for part in (rows, idle, weights, betas, y, val_y))
                columns, val_columns = (as_columns(part.x[rows], kind) for part in (data, validation))
                descend.keep(active)
    return best


class Descent:
    """In-place steps of gradient descent with momentum, or of Adam; remembers one state per parameter."""

    def __init__(self, momentum: float, optimizer: str) -> None:
        self.momentum, self.optimizer = momentum, optimizer
        self.state: dict[str, tuple[int, Tensor, Tensor]] = {}

    def __call__(
        self, name: str, parameter: Float[Tensor, "*shape"], gradient: Float[Tensor, "*shape"], rates: Tensor
    ) -> None:
        """Move `parameter` by one step."""
        count, first, second = self.state.get(name, (0, torch.zeros_like(parameter), torch.zeros_like(parameter)))
        count += 1
        if self.optimizer == "gd":
            first = first.mul_(self.momentum).add_(gradient)
            parameter.sub_(rates * first)
        else:
            first = first.mul_(self.momentum).add_(gradient, alpha=1 - self.momentum)
            second = second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            scale = (second / (1 - 0.999**count)).sqrt_().add_(1e-8)
            parameter.sub_(rates * first / (1 - self.momentum**count) / scale)
        self.state[name] = count, first, second

    def keep(self, runs: Int[Tensor, " active"]) -> None:
        """Forget all other runs."""
        self.state = {name: (count, first[runs], second[runs]) for name, (count, first, second) in self.state.items()}
