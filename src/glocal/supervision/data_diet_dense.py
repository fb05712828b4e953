r"""Stacks of multilayer perceptrons without a graph: outputs, gradients of the cross-entropy by hand, and training.

Features lie before examples in memory, `[s, features, b]`, so that the softmax and all elementwise operations run along
the examples. For networks as small as these that, and the graph that is not built, saves most of a training's time.

s networks, b examples, k classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glocal.nn.networks import MLP
from glocal.nn.stack import NetworkStack
from glocal.nn.training import Recipe


def is_dense(stack: NetworkStack) -> bool:
    """Whether the functions of this module apply: a stack of `MLP`."""
    return isinstance(stack.network, MLP)


def _forward(stack: NetworkStack, x: Float[Tensor, "_ b ..."]) -> tuple[Float[Tensor, "s k b"], list[Tensor]]:
    """Logits and the input of every layer."""
    parameters = stack.parameters()  # weight and bias of the layers in turn
    h, inputs = x.flatten(2).mT.expand(len(stack), -1, -1), list[Tensor]()
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        inputs.append(h.relu_() if inputs else h)
        h = torch.baddbmm(bias[..., None], weight, inputs[-1])
    return h, inputs


@torch.no_grad()
def dense_logits(stack: NetworkStack, x: Float[Tensor, "_ b ..."]) -> Float[Tensor, "s b k"]:
    """Outputs of perceptrons; `x` leads with an axis of 1 or s as in a call of the stack."""
    return _forward(stack, x)[0].mT


@torch.no_grad()
def dense_gradients(
    stack: NetworkStack, x: Float[Tensor, "s b ..."], labels: Int[Tensor, "s b"]
) -> tuple[list[Tensor], Float[Tensor, " s"], Float[Tensor, "s b k"]]:
    r"""Gradients of the mean cross-entropy of each network, the losses, and the logits.

    With the error signal $\delta = (p - y)/b$ of the last layer, a layer with weights $W$ and input $h$ has the
    gradients $\delta h^\top$ and, for the bias, the sum of $\delta$ over the batch; the signal of the layer before it
    is $W^\top\delta$ where $h > 0$, and 0 elsewhere.

    Args:
        stack: perceptrons.
        x: a batch for each network.
        labels: its classes.
    """
    weights, targets = stack.parameters()[::2], labels[:, None]
    logits, inputs = _forward(stack, x)
    log_probs = logits.log_softmax(1)
    losses = -log_probs.gather(1, targets).mean((1, 2))
    ones = torch.ones_like(targets, dtype=x.dtype)
    delta = log_probs.exp_().scatter_add_(1, targets, -ones) / labels.shape[1]
    gradients: list[Tensor] = []
    for position in reversed(range(len(weights))):
        gradients += [delta.sum(2), torch.bmm(delta, inputs[position].mT)]
        if position:
            signal = torch.bmm(weights[position].mT, delta)
            delta = torch.ops.aten.threshold_backward(signal, inputs[position], 0)
    return gradients[::-1], losses, logits.mT


@dataclass
class Nesterov:
    r"""Stochastic gradient descent with Nesterov momentum, as `Recipe` with `sgd` has it.

    $g \leftarrow g + \lambda w$, $v \leftarrow \mu v + g$, $w \leftarrow w - \eta(g + \mu v)$.

    Args:
        recipe: momentum $\mu$, weight decay $\lambda$ and the schedule of $\eta$.
    """

    recipe: Recipe
    velocity: list[Tensor] = field(default_factory=list)

    @torch.no_grad()
    def update(self, parameters: list[Tensor], gradients: list[Tensor], step: int) -> None:
        """Update number `step` in place; the gradients are overwritten."""
        momentum, lr = self.recipe.momentum, self.recipe.lr_at(step)
        self.velocity = self.velocity or [torch.zeros_like(w) for w in parameters]
        for w, g, v in zip(parameters, gradients, self.velocity, strict=True):
            g.add_(w, alpha=self.recipe.weight_decay)
            v.mul_(momentum).add_(g)
            w.sub_(g.add_(v, alpha=momentum), alpha=lr)


def fit_dense(
    stack: NetworkStack,
    batch_at: Callable[[int], tuple[Tensor, Tensor]],
    recipe: Recipe,
    *,
    watch: Callable[[int, Tensor], None] | None = None,
    after_step: Callable[[int], None] | None = None,
) -> Float[Tensor, "n_steps s"]:
    """What `glocal.nn.training.train` does with the cross-entropy and `sgd`, for a stack of perceptrons, in place.

    Args:
        stack: the networks.
        batch_at: inputs and classes of an update, for each network.
        recipe: optimiser and schedule.
        watch: receives the number of an update and the logits of its batch before it.
        after_step: called after each update with its number.

    Returns:
        Loss of each network before each update.

    Raises:
        FloatingPointError: if a loss is not finite after the last update.
    """
    optimizer, history = Nesterov(recipe), []
    for step in range(recipe.n_steps):
        gradients, losses, logits = dense_gradients(stack, *batch_at(step))
        if watch is not None:
            watch(step, logits)
        optimizer.update(stack.parameters(), gradients, step)
        history.append(losses)
        if after_step is not None:
            after_step(step)
    found = torch.stack(history)
    if not bool(found.isfinite().all()):
        raise FloatingPointError(f"a loss is not finite: lower the learning rate ({recipe.lr})")
    return found
