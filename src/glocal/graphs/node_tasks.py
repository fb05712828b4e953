"""Graphs with labelled nodes and their splits: the tasks that the chapters on node classification share."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from glocal.data import load, node_split
from glocal.seeding import torch_generator

if TYPE_CHECKING:
    from torch_geometric.data import Data

SHARED_TASK = "docgraph: test accuracy with ten labels per class, 500 validation nodes, all others tested"
N_COMPONENTS = 64
FEATURES = ("words", "components")
SPLITS = ("random", "public")


@dataclass(frozen=True)
class NodeTask:
    """One graph with one split; parts hold node indices in increasing order.

    Args:
        x: features.
        edge_index: both directions of every undirected edge, without loops; sources above targets.
        y: class of each node.
        train: labelled nodes.
        val: nodes for choosing the epoch and the hyperparameters.
        test: nodes for the one final measurement.
        n_classes: number of classes.
    """

    x: Float[Tensor, "n f"]
    edge_index: Int[Tensor, "2 e"]
    y: Int[Tensor, " n"]
    train: Int[Tensor, " _"]
    val: Int[Tensor, " _"]
    test: Int[Tensor, " _"]
    n_classes: int

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return len(self.y)

    def to(self, device: str | torch.device) -> "NodeTask":
        """The same task on `device`."""
        moved = {name: getattr(self, name).to(device) for name in ("x", "edge_index", "y", "train", "val", "test")}
        return replace(self, **moved)

    def with_edges(self, edge_index: Int[Tensor, "2 e"]) -> "NodeTask":
        """The same nodes and split with other edges."""
        return replace(self, edge_index=edge_index)

    def with_features(self, x: Float[Tensor, "n f"]) -> "NodeTask":
        """The same graph and split with other features."""
        return replace(self, x=x)


def node_task(
    data: "Data",
    *,
    labels_per_class: int = 10,
    n_val: int = 500,
    features: str = "components",
    split: str = "random",
    generator: torch.Generator,
) -> NodeTask:
    """A task on a graph: features prepared, nodes split.

    Args:
        data: PyG data with `x`, `edge_index` and `y`; a public split needs its three masks as well.
        labels_per_class: labelled nodes of each class, in a random split.
        n_val: validation nodes, in a random split; all others are test nodes.
        features: `"words"` divides each row by its sum, the usual preparation of citation graphs;
            `"components"` takes the first 64 singular components of all nodes, see `principal_components`.
        split: `"random"`, drawn from `generator`, or `"public"`, the masks stored with the graph.
        generator: source of the random split.

    Raises:
        ValueError: for an unknown choice, a missing public split, or classes too small for the split.
    """
    if features not in FEATURES:
        raise ValueError(f"features must be one of {', '.join(FEATURES)}, got {features!r}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if split == "public":
        if "train_mask" not in data:
            raise ValueError("split must be 'random' for this graph, which comes without a public split")
        masks = (data.train_mask, data.val_mask, data.test_mask)
    else:
        masks = node_split(data.y, labels_per_class, n_val, generator=generator)
    train, val, test = (mask.nonzero().flatten() for mask in masks)
    x = row_normalized(data.x) if features == "words" else principal_components(data.x)
    return NodeTask(x, data.edge_index, data.y, train, val, test, int(data.y.max()) + 1)


def shared_task(seed: int, run: int, *, features: str = "components", fake: bool = False) -> NodeTask:
    """Run number `run` of the task on which the methods of this part are put side by side.

    The citation graph `docgraph`, ten labels per class, 500 validation nodes, all others for the test. Equal
    `(seed, run)` give equal splits in every chapter, so that scores are paired across chapters.

    Args:
        seed: the chapter's seed.
        run: repetition, from 0.
        features: as in `node_task`.
        fake: a random graph of the same size instead, for rehearsals.
    """
    generator = torch_generator(seed, "shared node task", run)
    return node_task(load("docgraph", fake=fake), features=features, generator=generator)


def row_normalized(x: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
    """Rows divided by their sums; rows of zeros stay."""
    return x / x.sum(1, keepdim=True).clamp_min(1e-12)


def principal_components(x: Float[Tensor, "n f"], n_components: int = N_COMPONENTS) -> Float[Tensor, "n c"]:
    """First singular components of the rows, which are brought to unit length but not centred.

    One common factor makes the mean square of all entries one; scaling every component to unit variance would
    blow up those that carry little. Signs are such that the largest loading of a component is positive.

    Args:
        x: features; all nodes are used, which is allowed because no label is.
        n_components: how many; at most `min(n, f)`.
    """
    rows = F.normalize(x.double(), dim=1)
    _, vectors = torch.linalg.eigh(rows.T @ rows)
    vectors = vectors.flip(1)[:, :n_components]
    signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    projected = rows @ (vectors * signs)
    return (projected / projected.square().mean().sqrt()).float()


def nearest_neighbor_graph(x: Float[Tensor, "n f"], k: int) -> Int[Tensor, "2 e"]:
    """Undirected graph with an edge where one node is among the `k` nearest (Euclidean) of the other; no loops."""
    from sklearn.neighbors import kneighbors_graph

    if not 1 <= k < len(x):
        raise ValueError(f"k must be between 1 and {len(x) - 1}, got {k}")
    directed = kneighbors_graph(x.cpu().numpy(), k)
    both = (directed + directed.T).tocoo()
    order = np.lexsort((both.col, both.row))
    return torch.from_numpy(np.stack([both.row[order], both.col[order]]).astype(np.int64))


def large_components(data: "Data", *, min_size: int = 8, max_nodes: int | None = None) -> "Data":
    """The sub-graph of the components with at least `min_size` nodes, or of its first `max_nodes` nodes.

    Args:
        data: PyG data with node attributes `x` and `y`; other node attributes are dropped.
        min_size: smallest component that is kept.
        max_nodes: keep the first ones only, in the order of the node numbers; classes keep their numbers.
    """
    n = len(data.y)
    source, target = data.edge_index.numpy()
    _, component = connected_components(csr_matrix((np.ones(len(source)), (source, target)), (n, n)), directed=False)
    kept = np.flatnonzero(np.bincount(component)[component] >= min_size)[:max_nodes]
    return induced_subgraph(data, torch.from_numpy(kept))


def induced_subgraph(data: "Data", nodes: Int[Tensor, " k"]) -> "Data":
    """The sub-graph of some nodes, which are renumbered in the given order."""
    new_number = torch.full((len(data.y),), -1)
    new_number[nodes] = torch.arange(len(nodes))
    edges = new_number[data.edge_index]
    return type(data)(x=data.x[nodes], edge_index=edges[:, (edges >= 0).all(0)], y=data.y[nodes])


def contextual_block_model(
    class_sizes: list[int],
    *,
    degree: float,
    homophily: float,
    means: Float[Tensor, "k f"],
    weights: Float[Tensor, " n"] | None = None,
    generator: torch.Generator,
) -> "Data":
    r"""Contextual stochastic block model: random edges between classes, Gaussian features around class means.

    Pairs are joined independently with probability $\min(1, \theta_i \theta_j B_{y_i y_j})$; $B$ is such that,
    for unit weights, the mean degree is `degree` and the share of edges inside classes is `homophily`.

    Args:
        class_sizes: nodes of each class.
        degree: mean degree.
        homophily: expected share of edges inside a class, in (0, 1).
        means: class means; features are these plus standard normal noise.
        weights: degree corrections $\theta_i$ with mean one; None for all one.
        generator: source of edges and features.

    Raises:
        ValueError: if sizes and means do not fit, or a probability would exceed one for unit weights.
    """
    from glocal.data.pyg import data_class

    sizes = torch.tensor(class_sizes)
    if len(sizes) != len(means) or len(sizes) < 2:
        raise ValueError(f"means must have one row per class, at least two, got {len(means)} for {len(sizes)} classes")
    if not 0 < homophily < 1:
        raise ValueError(f"homophily must be in (0, 1), got {homophily}")
    y = torch.arange(len(sizes)).repeat_interleave(sizes)
    n = len(y)
    is_same = y[:, None] == y[None, :]
    n_same = float(is_same.sum()) - n
    n_edges = degree * n
    inside, outside = homophily * n_edges / n_same, (1 - homophily) * n_edges / (n * n - n - n_same)
    if max(inside, outside) > 1:
        raise ValueError(f"degree must be lower for these classes: an edge probability would be {max(inside, outside)}")
    probability = torch.where(is_same, inside, outside)
    if weights is not None:
        probability = probability * weights[:, None] * weights[None, :]
    drawn = torch.rand((n, n), generator=generator) < probability
    upper = drawn.triu(1).nonzero().T
    edge_index = torch.cat([upper, upper.flip(0)], dim=1)
    x = means[y] + torch.randn((n, means.shape[1]), generator=generator)
    return data_class()(x=x, edge_index=edge_index, y=y)


def edge_homophily(edge_index: Int[Tensor, "2 e"], y: Int[Tensor, " n"]) -> float:
    """Share of edges whose ends have the same class."""
    return float((y[edge_index[0]] == y[edge_index[1]]).double().mean())
