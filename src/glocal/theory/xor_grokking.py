r"""Benign overfitting and grokking of ReLU networks on XOR clusters (Xu et al., ICLR 2024, arXiv:2310.02541).

Sizes: `runs` independent problems side by side, `n` training points, `k` probes, `m` neurons, `p` coordinates.
The data and their Gram matrices are in `xor_grokking_data`, the other classifiers in `xor_grokking_baselines`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from glocal.theory.xor_grokking_data import Grams, Problem


def output_weights(runs: int, m: int, *, generator: torch.Generator) -> Float[Tensor, "runs m"]:
    r"""Fixed second layer: $a_j$ is $+1/\sqrt m$ or $-1/\sqrt m$ with probability one half each.

    Source: the network of the paper; $a$ is never trained.
    """
    signs = 2 * torch.randint(2, (runs, m), generator=generator, device=generator.device) - 1
    return signs.double() / m**0.5


def network(
    x: Float[Tensor, "runs n p"], weights: Float[Tensor, "runs m p"], second: Float[Tensor, "runs m"]
) -> Float[Tensor, "runs n"]:
    r"""$f(x; W) = \sum_j a_j\,\phi(\langle w_j, x\rangle)$ with $\phi = \mathrm{ReLU}$, without biases."""
    return (torch.relu(x @ weights.mT) @ second[..., None]).squeeze(-1)


def train_primal(
    x: Float[Tensor, "runs n p"],
    labels: Float[Tensor, "runs n"],
    second: Float[Tensor, "runs m"],
    init: Float[Tensor, "runs m p"],
    *,
    step_size: float,
    steps: int,
) -> Float[Tensor, "runs m p"]:
    r"""Full-batch gradient descent on $\hat L(W) = \frac1n\sum_i\log(1 + e^{-y_if(x_i)})$ by automatic differentiation.

    Args:
        x: training points.
        labels: observed labels.
        second: the fixed second layer.
        init: $W^{(0)}$.
        step_size: $\alpha$.
        steps: number of updates.

    Returns:
        The weights after `steps` updates.
    """
    weights = init.clone()
    for _ in range(steps):
        weights.requires_grad_()
        risk = F.softplus(-labels * network(x, weights, second)).mean(-1)
        (gradient,) = torch.autograd.grad(risk.sum(), weights)  # the runs do not interact
        weights = (weights - step_size * gradient).detach()
    return weights


@dataclass(frozen=True)
class Trajectory:
    r"""A trained network, seen through its outputs.

    Args:
        steps: recorded numbers of updates (the axis `records`).
        train: $f(x_i; W^{(t)})$ after each of $t = 0, 1, \dots$ updates.
        test: $f$ on the test points at the recorded steps.
        odd: odd part $\frac12(f(x) - f(-x)) = \frac12\sum_ja_j\langle w_j, x\rangle$ there, a linear function.
        along: $\langle w_j, \mu_1\rangle$ and $\langle w_j, \mu_2\rangle$ at the recorded steps.
        norms: $\lVert w_j\rVert$ at the recorded steps.
        coefs: $C^\top$ of $W = W^{(0)} + CX$ after the last update.
    """

    steps: tuple[int, ...]
    train: Float[Tensor, "runs times n"]
    test: Float[Tensor, "runs records test"]
    odd: Float[Tensor, "runs records test"]
    along: Float[Tensor, "runs records 2 m"]
    norms: Float[Tensor, "runs records m"]
    coefs: Float[Tensor, "runs n m"]

    def cosines(self, mu_sq: float) -> Float[Tensor, "runs records 2 m"]:
        r"""$\cos(w_j, \mu_1)$ and $\cos(w_j, \mu_2)$ for means of squared length `mu_sq`."""
        return self.along / (self.norms[:, :, None] * mu_sq**0.5)


def train_dual(
    problem: Problem,
    second: Float[Tensor, "runs m"],
    *,
    init_std: float,
    step_size: float,
    steps: int,
    record: Sequence[int] | None = None,
) -> Trajectory:
    r"""The same descent without $W$: $W^{(t)} = W^{(0)} + C^{(t)}X$, so that with $H = XW^\top = A_0 + KC^\top$

    $$C \leftarrow C + \frac\alpha n\,a\odot\bigl[(g\odot y)\,\mathbb 1\{H > 0\}\bigr]^\top, \qquad
    f = \phi(H)\,a, \qquad g_i = \frac1{1 + e^{y_if(x_i)}}.$$

    Identical to `train_primal` up to rounding, at $O(n^2m)$ per step whatever $p$.

    Args:
        problem: Gram matrices and labels.
        second: the fixed second layer.
        init_std: $\omega_{init}$, standard deviation of the entries of $W^{(0)}$.
        step_size: $\alpha$; the $1/n$ of the mean loss is inside.
        steps: number of updates.
        record: steps at which test points and neurons are evaluated; the last step by default.

    Raises:
        ValueError: if a number is not positive, or a recorded step lies outside 0 ... `steps`.

    Source: gradient descent of the paper; the dual form is exact because every gradient is a combination of the $x_i$.
    """
    for name, value in (("init_std", init_std), ("step_size", step_size), ("steps", steps)):
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
    record = sorted({steps} if record is None else set(record))
    if not record or record[0] < 0 or record[-1] > steps:
        raise ValueError(f"record must lie between 0 and steps = {steps}, got {record}")
    grams, y = problem.grams, problem.labels
    n = y.shape[1]
    first = init_std * grams.train_init  # A_0
    hidden, coefs = first.clone(), torch.zeros_like(first)
    scratch = torch.empty_like(first)  # fresh memory in every step would cost more than the arithmetic
    outputs, seen = [], []
    for t in range(steps + 1):
        outputs.append(readout(torch.clamp(hidden, min=0, out=scratch), second))
        if t in record:
            seen.append(_look(grams, second, init_std, coefs, hidden, first))
        if t < steps:
            pull = y * torch.sigmoid(-y * outputs[-1])  # y_i g_i
            change = torch.mul((step_size / n * pull)[..., None], second[:, None], out=scratch)
            change *= hidden > 0
            coefs += change
            hidden.baddbmm_(grams.train, change)  # H grows by K times the change of C^T
    test, odd, along, norms = (torch.stack(part, 1) for part in zip(*seen, strict=True))
    return Trajectory(tuple(record), torch.stack(outputs, 1), test, odd, along, norms, coefs)


def readout(hidden: Float[Tensor, "runs k m"], second: Float[Tensor, "runs m"]) -> Float[Tensor, "runs k"]:
    r"""$\sum_j a_jh_j$."""
    return (hidden @ second[..., None]).squeeze(-1)


def _look(
    grams: Grams, second: Tensor, init_std: float, coefs: Tensor, hidden: Tensor, first: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs on the test points, their odd part, and each neuron's products with the means and length."""
    probes = torch.baddbmm(grams.probes_init, grams.probes, coefs, beta=init_std)  # H of the probes
    test, along = probes[:, :-2], probes[:, -2:].clone()
    odd = readout(test, second) / 2
    norm_sq = init_std**2 * grams.init_sq + (coefs * (hidden + first)).sum(1)
    return readout(test.clamp_(min=0), second), odd, along, norm_sq.sqrt()


def accuracy(outputs: Float[Tensor, "*batch n"], labels: Float[Tensor, "*#batch n"]) -> Float[Tensor, "*batch"]:
    """Share of points whose output has the sign of the label; an output of zero is an error."""
    return (outputs * labels > 0).double().mean(-1)


def masked_accuracy(
    outputs: Float[Tensor, "*batch n"], labels: Float[Tensor, "*#batch n"], mask: Bool[Tensor, "*#batch n"]
) -> Float[Tensor, "*batch"]:
    """Accuracy over the points where `mask` is true."""
    correct = ((outputs * labels > 0) & mask).double().sum(-1)
    return correct / mask.double().sum(-1)


def feature_contrast(
    cosines: Float[Tensor, "runs records 2 m"], second: Float[Tensor, "runs m"]
) -> Float[Tensor, "runs records"]:
    r"""Mean over neurons of $|\cos(w_j, \text{own})| - |\cos(w_j, \text{other})|$.

    The own mean is $\mu_1$ for $a_j > 0$ and $\mu_2$ for $a_j < 0$. Exchanging the two pairs of clusters together
    with the labels shows that its expectation is zero as long as a neuron's weights do not depend on the sign of $a_j$
    except through their own sign, as after one step.
    """
    size = cosines.abs()
    return ((size[:, :, 0] - size[:, :, 1]) * second.sign()[:, None]).mean(-1)


def linear_scores(problem: Problem) -> Float[Tensor, "runs test"]:
    r"""$\sum_iy_i\langle x_i, x\rangle$ on the test points: what one step makes of the network."""
    return (problem.grams.probes[:, :-2] @ problem.labels[..., None]).squeeze(-1)


def one_step_slope(step_size: float, n: int) -> float:
    r"""$\alpha/(8n)$, the factor between $f(x; W^{(1)})$ and $\sum_iy_i\langle x_i, x\rangle$ as $m \to \infty$.

    Neuron $j$ is active on a random half $A_j$ of the points. With $S_j = \sum_{i\in A_j}y_i\langle x_i, x\rangle$ the
    neurons of both signs together give $\frac\alpha{4n}\mathbb E[\phi(S) - \phi(-S)] = \frac\alpha{4n}\mathbb E\,S$,
    and $\mathbb E\,S$ is half the full sum.
    """
    return step_size / (8 * n)


def feature_growth(step_size: float, mu_sq: float, flip_rate: float, n: int, m: int) -> float:
    r"""Predicted growth per step of a neuron's product with its own mean: $\frac\alpha{2n\sqrt m}\lVert\mu\rVert^2G$,

    $$G = \frac{n(1-\eta)}8\left[1 + \frac{1 + 12\eta}{\sqrt{\pi n(1 + 4\eta(1-\eta))}}\right].$$

    In the regime of the theorem, with balanced centres, a neuron that has chosen $+\mu_1$ keeps all $k_+$ correctly
    labelled points of that centre and its own random half of the $k_-$ of $-\mu_1$; in the mean $n(1-\eta)/8$ are left
    over. The choice is the sign of $D$, the label-weighted excess of $+\mu_1$ over $-\mu_1$ among its active points. It
    is about $N(\Delta, \frac n8)$ with $\Delta = k_+ - k_-$ of variance $\frac12n\eta(1-\eta)$. With $r$ the density of
    $D$ at zero, the bracket is $1 + r - \frac r2 + 6\eta r$: the active half of the other side is smaller if $D > 0$; a
    share $r$ of neurons has $D = 0$, chooses by noise and grows half as fast; the larger side is chosen more often.
    """
    density = 2 / math.sqrt(math.pi * n * (1 + 4 * flip_rate * (1 - flip_rate)))
    left_over = n * (1 - flip_rate) / 8 * (1 + (0.5 + 6 * flip_rate) * density)
    return step_size * mu_sq / (2 * n * m**0.5) * left_over


@dataclass(frozen=True)
class Regime:
    r"""A point at which assumptions (A1) to (A6) hold with constant $C$, as equalities where that is possible."""

    p: float
    mu_sq: float
    step_size: float
    init_std: float


def theorem_regime(n: int, m: int, constant: float) -> Regime:
    r"""The smallest problem that meets the assumptions for given $n$ and $C$.

    (A1) $\lVert\mu\rVert^2 = Cn^{0.51}\sqrt p$ and (A2) $p = Cn^2\lVert\mu\rVert^2$ give $p = C^4n^{5.02}$; then (A4)
    $\alpha = 1/(Cnp)$ and (A5) $\omega_{init} = \alpha\lVert\mu\rVert/(nm^{3/2}p)$.

    Raises:
        ValueError: if (A6) $m \ge Cn^{0.02}$ is violated.
    """
    if m < constant * n**0.02:
        raise ValueError(f"m must be at least C n^0.02 = {constant * n**0.02:.1f}, got {m}: take more neurons")
    p = constant**4 * n**5.02
    mu_sq = constant * n**0.51 * p**0.5
    step_size = 1 / (constant * n * p)
    return Regime(p, mu_sq, step_size, step_size * mu_sq**0.5 / (n * m**1.5 * p))
