"""The backbones of local augmentation by name (Liu et al., ICML 2022, arXiv:2109.03856)."""

from typing import Any

import torch

from glocal.graphs.lagnn_grand import AugmentedGRAND
from glocal.graphs.lagnn_networks import AugmentedGAT, AugmentedGCN, AugmentedGCNII, StackedBackbone
from glocal.graphs.node_tasks import NodeTask
from glocal.graphs.sparse import SparseOperator, propagation_operator

BACKBONES = ("gcn", "gcnii", "gat", "grand")


def build_backbone(
    name: str,
    task: NodeTask,
    *,
    n_hidden: int,
    concat: int,
    runs: int,
    dropout: float,
    heads: int = 8,
    n_layers: int = 8,
    order: int = 8,
    drop_node: float = 0.5,
    is_shared: bool = False,
    operator: SparseOperator | None = None,
    generator: torch.Generator,
) -> StackedBackbone:
    """A backbone by name; each reads its own options and leaves those of the others alone.

    Args:
        name: `"gcn"`, `"gcnii"` (reads `n_layers`), `"gat"` (`heads`) or `"grand"` (`order`, `drop_node`, `is_shared`).
        task: the graph.
        n_hidden: width per input, and per head in GAT.
        concat: generated inputs besides the real one.
        runs: networks side by side.
        dropout: of inputs and hidden features.
        heads: heads per input.
        n_layers: number of layers.
        order: largest order of propagation.
        drop_node: probability of dropping a node.
        is_shared: whether all inputs pass through the same first layer.
        operator: normalised adjacency, computed if None.
        generator: source of the weights.

    Raises:
        ValueError: for an unknown name or a negative number of generated inputs.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}, got {name!r}")
    if concat < 0:
        raise ValueError(f"concat must be at least 0, got {concat}")
    sizes = (task.x.shape[1], n_hidden, task.n_classes)
    common: dict[str, Any] = {"concat": concat, "runs": runs, "dropout": dropout, "generator": generator}
    if name == "gat":
        return AugmentedGAT(*sizes, heads=heads, task=task, **common)
    common["operator"] = operator or propagation_operator(task.edge_index, task.n_nodes)
    if name == "gcn":
        return AugmentedGCN(*sizes, **common)
    if name == "gcnii":
        return AugmentedGCNII(*sizes, n_layers=n_layers, **common)
    return AugmentedGRAND(*sizes, order=order, drop_node=drop_node, is_shared=is_shared, **common)
