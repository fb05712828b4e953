r"""RSS training of networks: the inner maximisation by gradient ascent, and semi-supervised methods to compare with.

s networks side by side, n examples, k classes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from glocal.nn.stack import NetworkStack
from glocal.nn.training import Recipe, minibatches, train

METHODS = ("supervised", "robust", "rss", "pseudo-labels", "vat")


@dataclass(frozen=True)
class Semi:
    r"""How a network uses labelled and unlabelled examples.

    Args:
        method: `supervised`; `robust`, robust loss on labels only; `rss`; `pseudo-labels`, confident own predictions as
            labels; `vat`, virtual adversarial training.
        weight: weight $\lambda$ of the unlabelled term.
        gamma: price of moving a labelled input, per unit of squared distance.
        gamma_u: price of moving an unlabelled input.
        inner_steps: steps K of the inner ascent.
        threshold: confidence from which pseudo-labels are used.
        radius: length of the perturbation in virtual adversarial training.

    Raises:
        ValueError: for an unknown method.
    """

    method: str
    weight: float = 1.0
    gamma: float = 1.0
    gamma_u: float = 1.0
    inner_steps: int = 5
    threshold: float = 0.95
    radius: float = 1.0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")


def cross_entropies(stack: NetworkStack, x: Float[Tensor, "s n ..."], y: Int[Tensor, "s n"]) -> Float[Tensor, "s n"]:
    """Cross-entropy of every example under its network."""
    return F.cross_entropy(stack(x).flatten(0, 1), y.flatten(), reduction="none").reshape(y.shape)


def worst_inputs(
    stack: NetworkStack, x: Float[Tensor, "s n ..."], y: Int[Tensor, "s n"], gamma: float, n_steps: int
) -> Float[Tensor, "s n ..."]:
    r"""Approximate maximiser of $\ell(z, y) - \gamma\lVert z - x\rVert_2^2$ by gradient ascent from $z = x$.

    The step $1/(4\gamma)$ is half of the one that solves the quadratic term exactly. The best iterate of
    every example is kept, so that the objective is never below its value at $z = x$. The weights receive no gradient.

    Args:
        stack: the networks.
        x: inputs.
        y: classes to lose.
        gamma: price of moving.
        n_steps: steps K.

    Source: general model, inner maximisation; the outer step uses Danskin's theorem.
    """
    z = x.detach().clone()
    best, best_value = z.clone(), torch.full(y.shape, -torch.inf, device=x.device, dtype=x.dtype)
    for _ in range(n_steps + 1):
        z.requires_grad_()
        value = cross_entropies(stack, z, y) - gamma * (z - x).square().flatten(2).sum(2)
        (slope,) = torch.autograd.grad(value.sum(), z)
        is_better = value.detach() > best_value
        best_value = torch.where(is_better, value.detach(), best_value)
        best = torch.where(is_better.reshape(*y.shape, *[1] * (x.ndim - 2)), z.detach(), best)
        z = z.detach() + slope / (4 * gamma)
    return best


def _unlabelled_loss(
    stack: NetworkStack, u: Float[Tensor, "s n ..."], how: Semi, generator: torch.Generator
) -> Float[Tensor, " s"]:
    """The term for unlabelled examples of a method."""
    with torch.no_grad():
        logits = stack(u)
    guessed = logits.argmax(-1)
    if how.method == "rss":
        moved = worst_inputs(stack, u, guessed, how.gamma_u, how.inner_steps)
        return cross_entropies(stack, moved, guessed).mean(1)
    if how.method == "pseudo-labels":
        is_sure = logits.softmax(-1).amax(-1) >= how.threshold
        return (cross_entropies(stack, u, guessed) * is_sure).mean(1)
    direction = torch.randn(u.shape, generator=generator, device=u.device, dtype=u.dtype)
    probe = (0.1 * _unit(direction)).requires_grad_()
    (direction,) = torch.autograd.grad(_divergence(logits, stack(u + probe)).sum(), probe)
    return _divergence(logits, stack(u + how.radius * _unit(direction))).mean(1)


def _divergence(target: Float[Tensor, "s n k"], logits: Float[Tensor, "s n k"]) -> Float[Tensor, "s n"]:
    """KL divergence of the predictions from fixed target predictions."""
    difference = target.log_softmax(-1) - logits.log_softmax(-1)
    return (target.softmax(-1) * difference).sum(-1)


def _unit(direction: Float[Tensor, "s n ..."]) -> Float[Tensor, "s n ..."]:
    """The same directions with length one per example."""
    norm = direction.flatten(2).norm(dim=2).clamp(min=1e-12)
    return direction / norm.reshape(*norm.shape, *[1] * (direction.ndim - 2))


def fit_networks(
    stack: NetworkStack,
    x: Float[Tensor, "s m ..."],
    y: Int[Tensor, "s m"],
    unlabelled: Float[Tensor, "s n ..."],
    how: Semi,
    recipe: Recipe,
    *,
    generator: torch.Generator,
) -> NetworkStack:
    """Train networks with a method, in place; every network has its own examples.

    Pseudo-labels are the classes of largest probability under the current weights, anew in every step. The unlabelled
    term rises linearly over the first fifth of the steps, for every method.

    Args:
        stack: the networks.
        x: labelled inputs.
        y: their classes.
        unlabelled: further inputs; unused by `supervised` and `robust`.
        how: method and weights.
        recipe: budget; its batch size counts labelled and unlabelled examples each.
        generator: order of the data and random directions.

    Returns:
        The stack.
    """
    own = [generator]
    rows = torch.arange(len(x), device=x.device)[:, None]
    labelled = minibatches([torch.arange(x.shape[1])] * len(x), recipe.batch_size, recipe.n_steps, generators=own)
    free = minibatches([torch.arange(unlabelled.shape[1])] * len(x), recipe.batch_size, recipe.n_steps, generators=own)

    def loss_at(step: int) -> Float[Tensor, " s"]:
        batch, target = x[rows, labelled[step]], y[rows, labelled[step]]
        if how.method in ("robust", "rss"):
            batch = worst_inputs(stack, batch, target, how.gamma, how.inner_steps)
        loss = cross_entropies(stack, batch, target).mean(1)
        if how.method in ("supervised", "robust"):
            return loss
        weight = how.weight * min(1.0, 5 * step / recipe.n_steps)
        return loss + weight * _unlabelled_loss(stack, unlabelled[rows, free[step]], how, generator)

    train(stack.parameters(), loss_at, recipe)
    return stack
