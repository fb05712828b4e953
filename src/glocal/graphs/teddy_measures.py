"""Graphs on which TEDDY is tried besides the citation graph, and what pruning does to a graph."""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from glocal.data import node_split
from glocal.data.pyg import data_class
from glocal.graphs.node_tasks import NodeTask, contextual_block_model, nearest_neighbor_graph, node_task
from glocal.graphs.teddy import degrees_of, within_hops


def neighbor_task(
    images: Float[Tensor, "n 1 h w"],
    labels: Int[Tensor, " n"],
    *,
    n_neighbors: int = 5,
    n_components: int = 50,
    n_val: int = 500,
    generator: torch.Generator,
) -> NodeTask:
    """A graph with hubs from pictures: left halves choose the neighbours, right halves are the features.

    Neighbour graphs in many dimensions have hubs, points that are among the neighbours of many others.

    Args:
        images: grey pictures.
        labels: their classes.
        n_neighbors: neighbours of each picture; an edge where one is a neighbour of the other.
        n_components: principal components of the right halves that serve as features, with one common scale.
        n_val: validation nodes; ten nodes per class are labelled, the others are tested.
        generator: source of the split.
    """
    from sklearn.decomposition import PCA

    half = images.shape[-1] // 2
    edges = nearest_neighbor_graph(images[..., :half].flatten(1), n_neighbors)
    right = images[..., half:].flatten(1)
    components = torch.from_numpy(PCA(min(n_components, *right.shape), svd_solver="full").fit_transform(right.double()))
    data = data_class()(x=right, edge_index=edges, y=labels)
    task = node_task(data, n_val=n_val, features="words", generator=generator)
    return task.with_features((components / components.square().mean().sqrt()).float())


def with_new_split(
    task: NodeTask, *, labels_per_class: int = 10, n_val: int = 500, generator: torch.Generator
) -> NodeTask:
    """The same graph and features with a split drawn anew; the nodes left over are tested."""
    masks = node_split(task.y, labels_per_class, n_val, generator=generator)
    train, val, test = (mask.nonzero().flatten() for mask in masks)
    return replace(task, train=train, val=val, test=test)


def hub_block_task(
    n_nodes: int = 1500,
    *,
    n_classes: int = 5,
    n_features: int = 32,
    homophily: float = 0.75,
    tail: float = 2.2,
    min_degree: float = 2.0,
    separation: float = 2.0,
    n_val: int = 500,
    generator: torch.Generator,
) -> NodeTask:
    r"""Block model whose degrees follow a power law: hubs and homophily by construction.

    Args:
        n_nodes: number of nodes, a multiple of the number of classes.
        n_classes: classes of equal size.
        n_features: Gaussian features around class means.
        homophily: expected share of edges inside a class.
        tail: exponent $a$ of the Pareto law of expected degrees, limited to 20 times the smallest.
        min_degree: smallest expected degree $m$; the mean is about $m a / (a - 1)$, and degrees vary around it.
        separation: norm of the class means, in standard deviations of a feature.
        n_val: validation nodes; ten nodes per class are labelled, the others are tested.
        generator: source of everything.
    """
    uniform = torch.rand(n_nodes, generator=generator).clamp_min(1e-12)
    weights = (uniform ** (-1 / tail)).clamp_max(20.0)
    means = F.normalize(torch.randn(n_classes, n_features, generator=generator), dim=1) * separation
    data = contextual_block_model(
        [n_nodes // n_classes] * n_classes,
        degree=float(min_degree * weights.mean()),
        homophily=homophily,
        means=means,
        weights=weights / weights.mean(),
        generator=generator,
    )
    return node_task(data, n_val=n_val, generator=generator)


def isolated_share(pairs: Int[Tensor, "2 m"], n_nodes: int) -> float:
    """Share of nodes without a neighbour."""
    return float((degrees_of(pairs, n_nodes) == 0).double().mean())


def far_share(pairs: Int[Tensor, "2 m"], n_nodes: int, labelled: Int[Tensor, " l"], *, hops: int = 2) -> float:
    """Share of nodes with no labelled node within `hops` steps, which two convolutions cannot connect to a label."""
    reached = within_hops(pairs, n_nodes, labelled, hops)
    return float((~reached).double().mean())


def repeated_task(task: NodeTask, times: int) -> NodeTask:
    """The same graph several times over, without edges in between; labels and split are those of the first."""
    n, offsets = task.n_nodes, torch.arange(times, device=task.y.device)[:, None]
    edges = torch.stack([(end + n * offsets).flatten() for end in task.edge_index])
    return NodeTask(
        task.x.repeat(times, 1), edges, task.y.repeat(times), task.train, task.val, task.test, task.n_classes
    )


def fitted_exponent(sizes: Float[Tensor, " s"], costs: Float[Tensor, " s"]) -> float:
    r"""Slope of $\log$ cost against $\log$ size by least squares."""
    x, y = sizes.double().log(), costs.double().log()
    x = x - x.mean()
    if not math.isfinite(float(y.sum())) or float(x @ x) == 0:
        raise ValueError("costs and sizes must be positive, and at least two sizes different")
    return float(x @ y / (x @ x))
