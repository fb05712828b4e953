"""Graphs on which TEDDY is tried besides the citation graph, and what pruning does to a graph."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from glocal.data.pyg import data_class
from glocal.graphs.node_tasks import NodeTask, contextual_block_model, nearest_neighbor_graph, node_task
from glocal.graphs.teddy import degrees_of


def neighbor_task(
    images: Float[Tensor, "n 1 h w"],
    labels: Int[Tensor, " n"],
    *,
    n_neighbors: int = 5,
    n_val: int = 500,
    generator: torch.Generator,
) -> NodeTask:
    """A graph with hubs from pictures: left halves choose the neighbours, right halves are the features.

    Neighbour graphs in many dimensions have hubs, points that are among the neighbours of many others.

    Args:
        images: grey pictures.
        labels: their classes.
        n_neighbors: neighbours of each picture; an edge where one is a neighbour of the other.
        n_val: validation nodes; ten nodes per class are labelled, the others are tested.
        generator: source of the split.
    """
    half = images.shape[-1] // 2
    edges = nearest_neighbor_graph(images[..., :half].flatten(1), n_neighbors)
    data = data_class()(x=images[..., half:].flatten(1), edge_index=edges, y=labels)
    return node_task(data, n_val=n_val, generator=generator)


def hub_block_task(
    n_nodes: int = 1500,
    *,
    n_classes: int = 5,
    n_features: int = 32,
    degree: float = 6.0,
    homophily: float = 0.75,
    tail: float = 2.2,
    separation: float = 2.0,
    n_val: int = 500,
    generator: torch.Generator,
) -> NodeTask:
    r"""Block model whose degrees follow a power law: hubs and homophily by construction.

    Args:
        n_nodes: number of nodes, a multiple of the number of classes.
        n_classes: classes of equal size.
        n_features: Gaussian features around class means.
        degree: mean degree.
        homophily: expected share of edges inside a class.
        tail: exponent of the Pareto law of the degree corrections, limited to 20 times the smallest.
        separation: norm of the class means, in standard deviations of a feature.
        n_val: validation nodes; ten nodes per class are labelled, the others are tested.
        generator: source of everything.
    """
    uniform = torch.rand(n_nodes, generator=generator).clamp_min(1e-12)
    weights = (uniform ** (-1 / tail)).clamp_max(20.0)
    means = F.normalize(torch.randn(n_classes, n_features, generator=generator), dim=1) * separation
    data = contextual_block_model(
        [n_nodes // n_classes] * n_classes,
        degree=degree,
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
    reached = torch.zeros(n_nodes, dtype=torch.bool, device=pairs.device)
    reached[labelled] = True
    for _ in range(hops):
        before = reached.clone()
        reached[pairs[0][before[pairs[1]]]] = True
        reached[pairs[1][before[pairs[0]]]] = True
    return float((~reached).double().mean())


def repeated_task(task: NodeTask, times: int) -> NodeTask:
    """The same graph several times over, without edges in between; labels and split are those of the first."""
    n, offsets = task.n_nodes, torch.arange(times, device=task.y.device)[:, None]
    edges = torch.stack([(end + n * offsets).flatten() for end in task.edge_index])
    return NodeTask(
        task.x.repeat(times, 1), edges, task.y.repeat(times), task.train, task.val, task.test, task.n_classes
    )


def saved_bytes(compute: Callable[[], Any]) -> int:
    """Bytes that automatic differentiation keeps for the backward pass of `compute`, every storage counted once."""
    storages: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        kept = compute()
    del kept
    return sum(storages.values())


def fitted_exponent(sizes: Float[Tensor, " s"], costs: Float[Tensor, " s"]) -> float:
    r"""Slope of $\log$ cost against $\log$ size by least squares."""
    x, y = sizes.double().log(), costs.double().log()
    x = x - x.mean()
    if not math.isfinite(float(y.sum())) or float(x @ x) == 0:
        raise ValueError("costs and sizes must be positive, and at least two sizes different")
    return float(x @ y / (x @ x))
