r"""What training holds in memory: bytes that autograd keeps between forward and backward pass.

Measured with PyTorch Geometric's own layers on one graph, for back-propagation and for single-forward learning.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glocal.data.pyg import data_class
from glocal.graphs.forwardgnn import Runs, augmented_features, augmented_graph, sf_logits
from glocal.graphs.forwardgnn_layers import unit_rows
from glocal.graphs.memory import saved_bytes
from glocal.graphs.node_classification import seeded


def pyg_layer(kind: str, n_in: int, n_out: int, *, n_heads: int = 4) -> nn.Module:
    """PyG's `GCNConv`, `SAGEConv` or `GATConv` of the given widths."""
    data_class()  # first, for its quiet import
    from torch_geometric.nn import GATConv, GCNConv, SAGEConv

    if kind == "gat":
        heads = n_heads if n_out % n_heads == 0 else 1
        return GATConv(n_in, n_out // heads, heads=heads)
    return {"gcn": GCNConv, "sage": SAGEConv}[kind](n_in, n_out)


def backprop_bytes(runs: Runs, n_layers: int, *, kind: str, n_hidden: int, generator: torch.Generator) -> int:
    """Bytes held by one end-to-end step of the first run, besides parameters: all layers' inputs and masks at once."""
    widths = [runs.x.shape[1], *[n_hidden] * (n_layers - 1), runs.n_classes]
    with seeded(generator):
        layers = nn.ModuleList(pyg_layer(kind, a, b) for a, b in itertools.pairwise(widths))
    layers.to(runs.x.device)
    x, train = unit_rows(runs.x), runs.train[0]

    def loss() -> Tensor:
        h = x
        for depth, layer in enumerate(layers):
            h = layer(h if depth == 0 else h.relu(), runs.edge_index)
        return F.cross_entropy(h[train], runs.y[train])

    return saved_bytes(loss, layers.parameters())


def forward_bytes(runs: Runs, n_layers: int, *, kind: str, n_hidden: int, generator: torch.Generator) -> int:
    """Largest number of bytes that a local SF step of any layer of the first run holds, besides parameters."""
    one = runs.subset(slice(0, 1))
    edges, k, train = augmented_graph(one).edge_index, runs.n_classes, runs.train[0]
    state = augmented_features(one, generator=generator)[0]
    largest = 0
    for _ in range(n_layers):
        with seeded(generator):
            layer = pyg_layer(kind, state.shape[1], n_hidden).to(state.device)
        x = unit_rows(state)

        def loss(layer: nn.Module = layer, x: Tensor = x) -> Tensor:
            z = layer(x, edges).relu()
            return F.cross_entropy(sf_logits(z[None, train], z[None, -k:])[0], runs.y[train])

        largest = max(largest, saved_bytes(loss, layer.parameters()))
        with torch.no_grad():
            state = layer(x, edges).relu()
    return largest
