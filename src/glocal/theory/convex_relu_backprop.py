r"""Backpropagation, plain and adversarial, with FGSM and PGD attacks: the baselines of convex training.

All runs train side by side with gradients in closed form; `runs`, `n`, `d`, `m` as in `convex_relu`.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from glocal.theory.convex_relu import Network

Loss = Literal["squared", "hinge"]


@dataclass(frozen=True)
class Attack:
    r"""Perturbations with $\lVert\delta\rVert_\infty \le \epsilon$ of all but the last `n_fixed` features.

    One step of length $\epsilon$ is FGSM; more steps of length $\epsilon/4$, each followed by a projection on the
    box, are PGD.
    """

    epsilon: float
    steps: int = 1
    n_fixed: int = 1

    def __call__(
        self, network: Network, x: Float[Tensor, "runs n d"], y: Float[Tensor, "runs n"]
    ) -> Float[Tensor, "runs n d"]:
        r"""Attacked examples: ascent on $-y f(x)$, which every loss that falls in the margin $yf(x)$ shares."""
        length = self.epsilon if self.steps == 1 else self.epsilon / 4
        delta = torch.zeros_like(x)
        for _ in range(self.steps):
            active = (x + delta) @ network.hidden > 0
            slope = (active * network.output[:, None]) @ network.hidden.mT  # gradient of f
            move = -y[..., None] * slope.sign() * length
            if self.n_fixed:
                move[..., -self.n_fixed :] = 0
            delta = (delta + move).clamp(-self.epsilon, self.epsilon)
        return x + delta


def accuracy(network: Network, x: Float[Tensor, "runs n d"], y: Float[Tensor, "runs n"]) -> Float[Tensor, " runs"]:
    """Share of examples on the right side of zero; a prediction of exactly zero is wrong."""
    return (network(x) * y > 0).to(x.dtype).mean(-1)


def hinge_loss(network: Network, x: Float[Tensor, "runs n d"], y: Float[Tensor, "runs n"]) -> Float[Tensor, " runs"]:
    r"""$\frac1n\sum_k (1 - y_k f(x_k))_+$ of each run."""
    return torch.relu(1 - y * network(x)).mean(-1)


def random_network(runs: int, d: int, width: int, *, generator: torch.Generator) -> Network:
    r"""Start of backpropagation: $u_j \sim N(0, 1/d)$ per entry, $\alpha_j \sim N(0, 1/m)$, in float64."""
    options = {"generator": generator, "dtype": torch.float64, "device": generator.device}
    hidden = torch.randn(runs, d, width, **options) / math.sqrt(d)  # type: ignore[call-overload]
    return Network(hidden, torch.randn(runs, width, **options) / math.sqrt(width))  # type: ignore[call-overload]


def objective_gradient(
    x: Float[Tensor, "runs n d"], y: Float[Tensor, "runs n"], network: Network, beta: float, loss: Loss
) -> tuple[Float[Tensor, "runs d m"], Float[Tensor, "runs m"]]:
    r"""Gradient of loss plus weight decay in $U$ and $\alpha$.

    The squared loss is $\frac12\sum_k r_k^2$, the hinge loss the mean $\frac1n\sum_k(1 - y_kf_k)_+$.
    """
    before = x @ network.hidden
    after = torch.relu(before)
    fit = (after @ network.output[..., None]).squeeze(-1)
    upstream = fit - y if loss == "squared" else -y * (y * fit < 1) / x.shape[1]
    output = (upstream[:, None] @ after).squeeze(1) + beta * network.output
    hidden = x.mT @ ((before > 0) * upstream[..., None] * network.output[:, None]) + beta * network.hidden
    return hidden, output


def train_network(
    x: Float[Tensor, "runs n d"],
    y: Float[Tensor, "runs n"],
    init: Network,
    *,
    beta: float,
    lr: float | Float[Tensor, " runs"],
    steps: int = 3000,
    loss: Loss = "squared",
    optimizer: Literal["adam", "gd"] = "adam",
    attack: Attack | None = None,
    momentum: float = 0.9,
) -> Network:
    r"""Full-batch Adam, or gradient descent with momentum, with a cosine schedule down to zero.

    Args:
        x: examples.
        y: targets.
        init: start; its runs are trained independently.
        beta: weight decay $\beta$.
        lr: first learning rate, one for all runs or one per run.
        steps: updates.
        loss: `"squared"` (a sum) or `"hinge"` (a mean).
        optimizer: `"adam"` ($\beta_1 = 0.9$, $\beta_2 = 0.999$) or `"gd"`.
        attack: adversarial training on examples attacked anew before every update.
        momentum: of gradient descent.

    Raises:
        ValueError: for an unknown optimizer.
    """
    if optimizer not in ("adam", "gd"):
        raise ValueError(f"optimizer must be 'adam' or 'gd', got {optimizer!r}")
    rate = torch.as_tensor(lr, dtype=x.dtype, device=x.device).expand(len(x))[:, None]
    parameters = [init.hidden, init.output]
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    for step in range(steps):
        network = Network(parameters[0], parameters[1])
        inputs = x if attack is None else attack(network, x, y)
        gradients = objective_gradient(inputs, y, network, beta, loss)
        factor = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        for j, gradient in enumerate(gradients):
            size = factor if j else factor[..., None]
            if optimizer == "gd":
                first[j] = momentum * first[j] + gradient
                parameters[j] = parameters[j] - size * first[j]
                continue
            first[j].lerp_(gradient, 0.1)
            second[j].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            scale = (second[j] / (1 - 0.999 ** (step + 1))).sqrt_().add_(1e-8)
            parameters[j] = parameters[j] - size / (1 - 0.9 ** (step + 1)) * first[j] / scale
    return Network(parameters[0], parameters[1])
