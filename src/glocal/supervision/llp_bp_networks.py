r"""Networks for label proportions: two losses, the baselines' losses, and one fit for all of them side by side.

s networks, r draws of the data, m bags, b instances per bag, d features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from glocal.nn.networks import MLP
from glocal.nn.stack import NetworkStack, Weights
from glocal.nn.training import Recipe, minibatches, train

EPSILON = 1e-6


class BagNetwork(MLP):
    r"""An MLP with one logit per instance, and a second head on the mean embedding of a bag.

    The embedding is the output of the last hidden layer but one, the layer from which neighbours are rebuilt.

    Args:
        n_inputs: features d.
        hidden: widths of the hidden layers, at least two.
        n_bag_hidden: width of the second head's hidden layer.

    Raises:
        ValueError: for fewer than two hidden layers.
    """

    def __init__(self, n_inputs: int, hidden: Sequence[int], n_bag_hidden: int = 64) -> None:
        if len(hidden) < 2:
            raise ValueError(f"the embedding is the last hidden layer but one: give at least two, got {list(hidden)}")
        super().__init__(n_inputs, hidden, 1)
        self.bag_head = nn.Sequential(nn.Linear(hidden[-2], n_bag_hidden), nn.ReLU(), nn.Linear(n_bag_hidden, 1))

    def embed(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n f"]:
        """Output of the last hidden layer but one."""
        return self.body[:-2](x)

    def joint(self, bags: Float[Tensor, "m b d"]) -> Float[Tensor, "m b+1"]:
        """Logits of the instances of each bag and, last, the logit of the bag's mean from its mean embedding."""
        n_bags, bag_size = bags.shape[:2]
        embedded = self.embed(bags.flatten(0, 1))
        logits = self.head(self.body[-2:](embedded)).reshape(n_bags, bag_size)
        return torch.cat([logits, self.bag_head(embedded.reshape(n_bags, bag_size, -1).mean(1))], dim=1)


def stacked_joint(weights: Weights, bags: Float[Tensor, "s m b d"]) -> Float[Tensor, "s m b+1"]:
    """`BagNetwork.joint` of a stack of networks, each on its own bags.

    The same numbers as a mapped call of the stack, but faster: with few instances per network and step the overhead
    of mapping shows, and a batched product adds the bias in the same pass.

    Args:
        weights: stacked weights of `BagNetwork`, by name.
        bags: the bags of each network.
    """

    def linear(x: Float[Tensor, "s n i"], name: str) -> Float[Tensor, "s n o"]:
        return torch.baddbmm(weights[f"{name}.bias"][:, None], x, weights[f"{name}.weight"].mT)

    layers = [name.removesuffix(".weight") for name in weights if name.startswith("body") and name.endswith("weight")]
    hidden = [bags.flatten(1, 2)]
    for layer in layers:
        hidden.append(linear(hidden[-1], layer).relu())
    logits = linear(hidden[-1], "head").reshape(bags.shape[:3])
    pooled = hidden[-2].reshape(*bags.shape[:3], -1).mean(2)
    return torch.cat([logits, linear(linear(pooled, "bag_head.0").relu(), "bag_head.2")], dim=2)


@dataclass(frozen=True)
class Objective:
    r"""What one method minimises: targets of instances, and the weights of three losses.

    Args:
        targets: target of each instance for each draw; may leave [0, 1].
        instance: weight of $\mathrm{BCE}(\text{target}, f(x))$.
        proportion: weight of $\mathrm{BCE}(\bar y_B, \text{mean of } f \text{ over } B)$, the loss of DLLP.
        pooled: weight $\lambda_a$ of $\mathrm{BCE}(\bar y_B, g(\text{mean embedding of } B))$.
    """

    targets: Float[Tensor, "r m b"]
    instance: float = 1.0
    proportion: float = 0.0
    pooled: float = 0.0


def proportion_loss(logits: Float[Tensor, "*r m b"], means: Float[Tensor, "*r m"]) -> Float[Tensor, "*r"]:
    """Cross-entropy between a bag's label mean and its mean predicted probability, averaged over bags (DLLP)."""
    probs = torch.sigmoid(logits).mean(-1).clamp(EPSILON, 1 - EPSILON)
    return F.binary_cross_entropy(probs, means.expand_as(probs), reduction="none").mean(-1)


def easyllp_targets(means: Float[Tensor, "r m"], bag_size: int) -> Float[Tensor, "r m b"]:
    r"""Pseudo-targets $b (\bar y_B - p) + p$ with the global mean $p$: their mean over random bags is the label.

    Cross-entropy is linear in its target, so the instance loss with these targets is an unbiased estimate of the
    supervised one.
    """
    overall = means.mean(1, keepdim=True)
    return (bag_size * (means - overall) + overall)[..., None].expand(-1, -1, bag_size)


def smoothed_targets(neighbours: Int[Tensor, "n k"], means: Float[Tensor, " m"], bag_size: int) -> Float[Tensor, "m b"]:
    """The mean of the neighbours' bag means: what the graph says without belief propagation."""
    return means[neighbours // bag_size].mean(1).reshape(len(means), bag_size).to(means)


@dataclass(frozen=True)
class Bags:
    """The same number of bags for each draw of the data.

    Args:
        x: features.
        y: hidden labels, read by the oracle and by evaluation only.
    """

    x: Float[Tensor, "r m b d"]
    y: Float[Tensor, "r m b"]

    @property
    def means(self) -> Float[Tensor, "r m"]:
        """Known label means."""
        return self.y.mean(2)

    @property
    def sums(self) -> Float[Tensor, "r m"]:
        """Known label sums."""
        return self.y.sum(2)


@dataclass(frozen=True)
class Fitted:
    """Trained networks, ordered by objective, then draw.

    Args:
        stack: with the weights chosen by bags: lowest proportion loss on the validation bags.
        by_instances: weights with the lowest cross-entropy of validation instances, which needs their labels.
        val_loss: the lowest proportion loss of each network on the validation bags.
    """

    stack: NetworkStack
    by_instances: Weights
    val_loss: Float[Tensor, " s"]


class _Best:
    """Weights of each network at the evaluation where its loss was lowest."""

    def __init__(self, stack: NetworkStack) -> None:
        self.weights = stack.state()
        self.loss = torch.full((len(stack),), torch.inf, device=stack.parameters()[0].device)

    @torch.no_grad()
    def update(self, stack: NetworkStack, loss: Float[Tensor, " s"], min_delta: float) -> None:
        better = loss < self.loss - min_delta
        self.loss = torch.where(better, loss, self.loss)
        for name, tensor in stack.weights.items():
            self.weights[name][better] = tensor.detach()[better]


def fit(
    objectives: Sequence[Objective],
    train_bags: Bags,
    val_bags: Bags,
    recipe: Recipe,
    hidden: Sequence[int],
    *,
    generators: Sequence[torch.Generator],
    bags_per_step: int,
    val_every: int,
    min_delta: float = 1e-4,
) -> Fitted:
    """Train one network per objective and draw; all methods see the same bags in the same order.

    A batch is a number of whole bags. All networks of a draw start from the same weights and take `recipe.n_steps`
    steps; each keeps the weights of the evaluation with the lowest validation loss.

    Args:
        objectives: the methods.
        train_bags: training data of each draw.
        val_bags: validation bags; their instance labels serve only `Fitted.by_instances`.
        recipe: optimiser and steps.
        hidden: widths of the hidden layers.
        generators: one per draw, for initial weights and the order of bags.
        bags_per_step: bags per update.
        val_every: updates between evaluations.
        min_delta: smallest improvement that counts.

    Raises:
        ValueError: if there is not one generator per draw.
    """
    n_draws, n_bags, _, n_inputs = train_bags.x.shape
    if len(generators) != n_draws:
        raise ValueError(f"fit needs one generator per draw, got {len(generators)} for {n_draws} draws")
    device, repeats = train_bags.x.device, len(objectives)
    one = NetworkStack.build(lambda: BagNetwork(n_inputs, hidden), generators)
    stack = one.select(list(range(n_draws)) * repeats)
    every_bag = torch.arange(n_bags, device=device)
    batches = minibatches([every_bag] * n_draws, bags_per_step, recipe.n_steps, generators=generators)
    targets = torch.stack([objective.targets for objective in objectives]).float()
    weights = torch.tensor([[o.instance, o.proportion, o.pooled] for o in objectives], device=device)
    weights = weights.repeat_interleave(n_draws, 0)
    draws, means = torch.arange(n_draws, device=device)[:, None], train_bags.means

    def loss_at(step: int) -> Float[Tensor, " s"]:
        index = batches[step]
        logits = stacked_joint(stack.weights, train_bags.x[draws, index].repeat(repeats, 1, 1, 1))
        target, mean = targets[:, draws, index].flatten(0, 1), means[draws, index].repeat(repeats, 1)
        instance = F.binary_cross_entropy_with_logits(logits[..., :-1], target, reduction="none").mean((1, 2))
        pooled = F.binary_cross_entropy_with_logits(logits[..., -1], mean, reduction="none").mean(1)
        return (weights * torch.stack([instance, proportion_loss(logits[..., :-1], mean), pooled], dim=1)).sum(1)

    best, by_instances = _Best(stack), _Best(stack)

    @torch.no_grad()
    def evaluate(step: int) -> None:
        if (step + 1) % val_every and step + 1 < recipe.n_steps:
            return
        logits = stacked_joint(stack.weights, val_bags.x.repeat(repeats, 1, 1, 1))[..., :-1]
        best.update(stack, proportion_loss(logits, val_bags.means.repeat(repeats, 1)), min_delta)
        labels = val_bags.y.repeat(repeats, 1, 1)
        loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean((1, 2))
        by_instances.update(stack, loss, min_delta)

    train(stack.parameters(), loss_at, recipe, after_step=evaluate)
    return Fitted(stack.load(best.weights), by_instances.weights, best.loss)
