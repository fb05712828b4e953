r"""The procedure: belief propagation on covariates, a network, belief propagation on its embeddings, a fresh network.

r draws, n = m b instances in m bags, d features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from glocal.nn.stack import NetworkStack, predict
from glocal.nn.training import Recipe
from glocal.supervision.llp_bp import Choice, choose_pair, hard_labels
from glocal.supervision.llp_bp_data import BaggedTask, aucs
from glocal.supervision.llp_bp_graph import GraphSettings, agreement, cosine_neighbours, neighbour_edges
from glocal.supervision.llp_bp_networks import Bags, Objective, easyllp_targets, fit, smoothed_targets

Pair = tuple[float, float]


@dataclass(frozen=True)
class BpSettings:
    """Belief propagation of one experiment.

    Args:
        n_iters: most iterations.
        damping: share of the old message that is kept.
        init: initial messages, see `belief_propagation`.
        graph: neighbours.
    """

    n_iters: int = 100
    damping: float = 0.5
    init: str = "half"
    graph: GraphSettings = field(default_factory=GraphSettings)


@dataclass(frozen=True)
class PseudoLabels:
    """Beliefs of each draw with what can be said about them without labels, and with.

    Args:
        probs: marginals.
        labels: hard pseudo-labels.
        residuals: bag residual of each draw.
        agreements: share of edges with equal labels, which reads the hidden labels and is only reported.
        n_iters: iterations of each draw.
        similarity: median edge weight of each draw.
    """

    probs: Float[Tensor, "r m b"]
    labels: Float[Tensor, "r m b"]
    residuals: list[float]
    agreements: list[float]
    n_iters: list[int]
    similarity: list[float]


def pseudo_labels(
    z: Float[Tensor, "r n d"], bags: Bags, pair: Pair, settings: BpSettings, *, threshold: float | None = 0.5
) -> PseudoLabels:
    r"""Graph, belief propagation and hard labels of each draw.

    Args:
        z: covariates or embeddings of the instances, bag by bag.
        bags: their bags; only sums are used.
        pair: $(\lambda_s, \lambda_b)$.
        settings: see `BpSettings`.
        threshold: see `hard_labels`.
    """
    found, agreements, similarity = [], [], []
    for points, sums, y in zip(z, bags.sums, bags.y, strict=True):
        edges, weights = neighbour_edges(points, settings.graph, sums)
        found.append(choose_pair(edges, weights, sums, bags.y.shape[2], [pair], **bp_options(settings)))
        agreements.append(agreement(edges, y))
        similarity.append(float(weights.median()) if len(weights) else 0.0)
    probs = [one.beliefs.probs for one in found]
    return PseudoLabels(
        torch.stack(probs),
        torch.stack([hard_labels(p, sums, threshold) for p, sums in zip(probs, bags.sums, strict=True)]).float(),
        [one.residuals[0] for one in found],
        agreements,
        [one.beliefs.n_iters for one in found],
        similarity,
    )


def bp_options(settings: BpSettings) -> dict[str, Any]:
    """The options of `belief_propagation` among the settings."""
    return {"n_iters": settings.n_iters, "damping": settings.damping, "init": settings.init}


def tuned_pair(z: Float[Tensor, "n d"], bags: Bags, pairs: Sequence[Pair], settings: BpSettings) -> Choice:
    """The pair with the smallest bag residual on the first draw, and what all of them led to; reads no labels."""
    edges, weights = neighbour_edges(z, settings.graph, bags.sums[0])
    return choose_pair(edges, weights, bags.sums[0], bags.y.shape[2], pairs, **bp_options(settings))


def embeddings(stack: NetworkStack, bags: Bags) -> Float[Tensor, "r n f"]:
    """What each draw's network makes of its training instances, one layer below the last."""
    return predict(stack, bags.x.flatten(1, 2), method="embed")


def objectives(bags: Bags, labels: Float[Tensor, "r m b"], k: int, lam_agg: float) -> dict[str, Objective]:
    """What each method minimises in the first round; `labels` are the pseudo-labels.

    Args:
        bags: training bags.
        labels: pseudo-labels of the first round.
        k: neighbours of the smoothing baseline.
        lam_agg: weight of the pooled bag loss of the first network.
    """
    named = {"DLLP": Objective(torch.zeros_like(bags.y), instance=0.0, proportion=1.0)}
    named |= {name: Objective(targets) for name, targets in baseline_targets(bags, k).items()}
    return named | {"BP, first network": Objective(labels, pooled=lam_agg), "BP, one round": Objective(labels)}


@dataclass(frozen=True)
class Trained:
    """The networks of one method, one per draw.

    Args:
        stack: with the weights chosen by bags.
        auc: test AUC in per cent.
        auc_by_instances: test AUC of the weights chosen with the labels of validation instances.
        val_loss: proportion loss on the validation bags.
    """

    stack: NetworkStack
    auc: np.ndarray
    auc_by_instances: np.ndarray
    val_loss: Float[Tensor, " r"]


def train_methods(
    methods: Mapping[str, Objective],
    task: BaggedTask,
    recipes: Mapping[str, Recipe],
    hidden: Sequence[int],
    *,
    streams: Callable[[], Sequence[torch.Generator]],
    val_every: int,
) -> dict[str, Trained]:
    """Fit and test all methods; those with equal recipes are trained side by side.

    Args:
        methods: objective of each method.
        task: data of all draws.
        recipes: recipe of each method; `batch_size` counts instances and is filled with whole bags, at least one.
        hidden: widths of the hidden layers.
        streams: makes one generator per draw, the same ones each time.
        val_every: updates between evaluations.
    """
    results, n_draws = {}, len(task.y_test)
    for recipe in dict.fromkeys(recipes[name] for name in methods):
        group = [name for name in methods if recipes[name] == recipe]
        fitted = fit(
            [methods[name] for name in group],
            task.train,
            task.val,
            recipe,
            hidden,
            generators=streams(),
            bags_per_step=max(1, recipe.batch_size // task.train.y.shape[2]),
            val_every=val_every,
        )
        for place, name in enumerate(group):
            mine = range(place * n_draws, (place + 1) * n_draws)
            stack = fitted.stack.select(mine)
            by_labels = stack.select(range(n_draws)).load({key: w[mine] for key, w in fitted.by_instances.items()})
            auc, auc_by_labels = (
                np.array(aucs(predict(one, task.x_test)[..., 0], task.y_test)) for one in (stack, by_labels)
            )
            results[name] = Trained(stack, auc, auc_by_labels, fitted.val_loss[mine])
    return results


def baseline_targets(bags: Bags, k: int) -> dict[str, Float[Tensor, "r m b"]]:
    """Targets of the baselines that learn from instances: bag means, EasyLLP, means of neighbours, hidden labels."""
    size = bags.y.shape[2]
    smoothed = [
        smoothed_targets(cosine_neighbours(x, k)[0], means, size)
        for x, means in zip(bags.x.flatten(1, 2), bags.means, strict=True)
    ]
    return {
        "EasyLLP": easyllp_targets(bags.means, size),
        "kNN smoothing": torch.stack(smoothed),
        "bag means": bags.means[..., None].expand_as(bags.y),
        "oracle": bags.y,
    }
