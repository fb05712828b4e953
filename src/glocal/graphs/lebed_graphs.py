"""Shifted test graphs for LeBeD: the official perturbations, and three sources of digits as domains."""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from glocal.data import load
from glocal.data.pyg import data_class
from glocal.graphs.lebed_networks import GraphBatch
from glocal.graphs.node_tasks import nearest_neighbor_graph

if TYPE_CHECKING:
    from torch_geometric.data import Data

SHIFTS = ("noise", "mask", "edges", "subgraph")
LOWEST, HIGHEST = 0.1, 0.7  # range of the strength p of every perturbation
MARGIN = 0.1  # added to the standard deviation of a pixel, many of which are nearly constant


def non_edges(edge_index: Int[Tensor, "2 e"], n_nodes: int, *, generator: torch.Generator) -> Int[Tensor, "2 e"]:
    """As many ordered pairs without an edge as there are entries, distinct, without loops; on the CPU.

    PyG's `negative_sampling` draws from Python's global generator, hence this one.

    Raises:
        ValueError: if the graph is so dense that there are not enough such pairs.
    """
    wanted = edge_index.shape[1]
    if wanted > n_nodes * (n_nodes - 1) - wanted:
        raise ValueError(f"the graph must have more non-edges than edges, got {wanted} edges on {n_nodes} nodes")
    taken = torch.cat([edge_index[0] * n_nodes + edge_index[1], torch.arange(n_nodes) * (n_nodes + 1)])
    found = taken[:0]
    while len(found) < wanted:
        drawn = torch.randint(n_nodes**2, (2 * wanted,), generator=generator)
        found = torch.cat([found, drawn[~torch.isin(drawn, taken)]]).unique()
    found = found[torch.randperm(len(found), generator=generator)[:wanted]]
    return torch.stack([found // n_nodes, found % n_nodes])


def graph_of(
    x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"], y: Int[Tensor, " n"], *, generator: torch.Generator
) -> "Data":
    """A graph with its non-edges, which are drawn here once and for all."""
    negatives = non_edges(edge_index, len(y), generator=generator)
    return data_class()(x=x, edge_index=edge_index, y=y, neg_edge_index=negatives)


def perturbed(
    graph: "Data", shift: str, strength: float, *, noise_scale: float = 1.0, generator: torch.Generator
) -> "Data":
    r"""A copy of the graph under one of the official perturbations; the original is not touched.

    `"noise"` adds $\mathcal N(0, (s p)^2)$ to the features, `"mask"` sets each feature to zero everywhere with
    probability $p$, `"edges"` drops each directed entry with probability $p$, `"subgraph"` keeps a share $p$ of
    the nodes of each class. The last two draw new non-edges.

    Args:
        graph: with `x`, `edge_index`, `y`, `neg_edge_index`.
        shift: one of `SHIFTS`.
        strength: $p$, in (0, 1).
        noise_scale: $s$ (paper: 1, for features between 0 and 1).
        generator: source of all draws.

    Raises:
        ValueError: for an unknown perturbation or a strength outside (0, 1).
    """
    if shift not in SHIFTS:
        raise ValueError(f"shift must be one of {', '.join(SHIFTS)}, got {shift!r}")
    if not 0 < strength < 1:
        raise ValueError(f"strength must lie strictly between 0 and 1, got {strength}")
    result = graph.clone()
    if shift == "noise":
        result.x = graph.x + noise_scale * strength * torch.randn(graph.x.shape, generator=generator)
    elif shift == "mask":
        is_kept = torch.rand(graph.x.shape[1], generator=generator) >= strength
        result.x = graph.x * is_kept
    elif shift == "edges":
        is_kept = torch.rand(graph.edge_index.shape[1], generator=generator) >= strength
        result.edge_index = graph.edge_index[:, is_kept]
        result.neg_edge_index = non_edges(result.edge_index, len(graph.y), generator=generator)
    else:
        nodes = proportional_nodes(graph.y, strength, generator=generator)
        number = torch.full((len(graph.y),), -1)
        number[nodes] = torch.arange(len(nodes))
        edges = number[graph.edge_index]
        edges = edges[:, (edges >= 0).all(0)]
        result = graph_of(graph.x[nodes], edges, graph.y[nodes], generator=generator)
    return result


def proportional_nodes(y: Int[Tensor, " n"], share: float, *, generator: torch.Generator) -> Int[Tensor, " m"]:
    r"""A random subset with the class proportions of the whole.

    Of class $k$ with $n_k$ of the $n$ nodes it has $\lfloor n_k m / n \rfloor$, where $m = \lfloor pn \rfloor$.
    """
    order = torch.randperm(len(y), generator=generator)
    kept = []
    for label in y.unique():
        members = order[y[order] == label]
        kept.append(members[: len(members) * int(len(y) * share) // len(y)])
    nodes = torch.cat(kept)
    return nodes[torch.randperm(len(nodes), generator=generator)]


def strengths(count: int, *, generator: torch.Generator) -> list[float]:
    """`count` strengths between 0.1 and 0.7, one drawn uniformly from each of as many equal parts of the range."""
    places = torch.arange(count) + torch.rand(count, generator=generator)
    return (LOWEST + (HIGHEST - LOWEST) * places / count).tolist()


def batch_graphs(graphs: list["Data"], device: str | torch.device = "cpu") -> GraphBatch:
    """Graphs side by side, padded to the largest; labels are left behind."""
    n = max(len(graph.x) for graph in graphs)
    x = torch.stack([F.pad(graph.x, (0, 0, 0, n - len(graph.x))) for graph in graphs])
    is_node = torch.stack([torch.arange(n) < len(graph.x) for graph in graphs])
    edges, *parts = union_pairs(graphs, n)
    pairs = torch.cat([pairs for pairs, _ in parts], dim=1)
    counts = torch.cat([counts for _, counts in parts]).float()
    owner = pairs[0] // n
    weight = counts / torch.bincount(owner, counts, minlength=len(graphs)).float()[owner]
    is_edge = torch.arange(pairs.shape[1]) < parts[0][0].shape[1]
    x, is_node, edges, pairs = (part.to(device) for part in (x, is_node, edges, pairs))
    return GraphBatch(x, is_node, edges, pairs, is_edge.to(device), owner.to(device), weight.to(device))


def union_pairs(graphs: list["Data"], n: int) -> list[Any]:
    """Directed entries in the union of the graphs; unordered edges and unordered non-edges, each with its counts."""
    size, found = n * len(graphs), []
    for name in ("edge_index", "neg_edge_index"):
        entries = torch.cat([graph[name] + n * i for i, graph in enumerate(graphs)], dim=1)
        codes, counts = torch.unique(entries.amin(0) * size + entries.amax(0), return_counts=True)
        found += [entries] * (name == "edge_index") + [(torch.stack([codes // size, codes % size]), counts)]
    return found


def padded_labels(labels: list[Int[Tensor, " _"]], device: str | torch.device = "cpu") -> Int[Tensor, "b n"]:
    """Labels of several graphs side by side, -1 where a graph has no node."""
    n = max(map(len, labels))
    return torch.stack([F.pad(y, (0, n - len(y)), value=-1) for y in labels]).to(device)


def digit_sources(fake: bool = False) -> dict[str, tuple[Float[Tensor, "_ 64"], Int[Tensor, " _"]]]:
    """Handwritten digits as 8 x 8 pixels in [0, 1], from three places.

    `"digits"`: scikit-learn's set. `"writers"`: the part of optdigits that is not in it, by other people, same
    scanner. `"mnist"`: MNIST, the central 24 x 24 pixels averaged over 3 x 3. `"small mnist"`: the whole
    28 x 28 averaged to 8 x 8, digits therefore smaller.
    """
    digits, mnist, table = (load(name, fake=fake) for name in ("digits", "mnist5k", "optdigits"))
    source = digits.images.flatten(1)
    rows = table.x.float() / 16
    known = {row.tobytes() for row in (source * 16).round().to(torch.uint8).numpy()}
    is_new = torch.tensor([row.tobytes() not in known for row in (rows * 16).round().to(torch.uint8).numpy()])
    cropped = F.avg_pool2d(mnist.images[:, :, 2:26, 2:26], 3).flatten(1)
    whole = F.adaptive_avg_pool2d(mnist.images, 8).flatten(1)
    return {
        "digits": (source, digits.labels),
        "writers": (rows[is_new], table.labels[is_new]),
        "mnist": (cropped, mnist.labels),
        "small mnist": (whole, mnist.labels),
    }


def digit_graphs(
    sources: dict[str, tuple[Float[Tensor, "_ 64"], Int[Tensor, " _"]]],
    parts: list[tuple[str, str, int]],
    *,
    n_neighbors: int = 6,
    generator: torch.Generator,
) -> dict[str, "Data"]:
    """Neighbour graphs of disjoint random parts of the sources; features standardised by the first part.

    Args:
        sources: pixels and labels by name.
        parts: name of the graph, name of its source, number of nodes; the first is the training graph.
        n_neighbors: of the symmetrised neighbour graph, computed on the raw pixels inside each part.
        generator: source of the parts and of the non-edges.
    """
    queues = {name: torch.randperm(len(y), generator=generator) for name, (_, y) in sources.items()}
    graphs, mean, std = {}, torch.empty(0), torch.empty(0)
    for index, (name, source, size) in enumerate(parts):
        nodes, queues[source] = queues[source][:size], queues[source][size:]
        if len(nodes) < size:
            raise ValueError(f"source {source!r} must have {size} more nodes for graph {name!r}, got {len(nodes)}")
        pixels, y = (part[nodes] for part in sources[source])
        if index == 0:
            mean, std = pixels.mean(0), pixels.std(0) + MARGIN
        edges = nearest_neighbor_graph(pixels, n_neighbors)
        graphs[name] = graph_of((pixels - mean) / std, edges, y, generator=generator)
    return graphs
