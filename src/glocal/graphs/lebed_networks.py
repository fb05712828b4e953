r"""PyG's two-layer encoders (GCN, GraphSAGE, GAT, GIN, MLP) for many graphs side by side, each with its own weights.

The evaluation of Zheng et al. (ICLR 2024) trains one small network per test graph. Here $b$ graphs are padded to one
size and trained at once: weights have a leading axis, edges are numbered in the union of the graphs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from glocal.data.pyg import data_class
from glocal.graphs.node_classification import seeded
from glocal.graphs.sparse import SparseOperator, compressed_rows

KINDS = ("GCN", "SAGE", "GAT", "GIN", "MLP")
Weights = dict[str, Float[Tensor, "b ..."]]
MOMENTUM, EPSILON, SLOPE = 0.1, 1e-5, 0.2  # defaults of PyG's BatchNorm (in MLP) and of GATConv


@dataclass(frozen=True)
class GraphBatch:
    """Graphs side by side; build it with `lebed_graphs.batch_graphs`. It holds no labels.

    Args:
        x: features, zero where a graph has no node.
        is_node: which rows are nodes.
        edge_index: directed entries (source, target), nodes numbered `graph * n + node`.
        pairs: ends of edges and sampled non-edges, numbered likewise; unordered, each once.
        is_edge: whether a pair is an edge.
        owner: graph of a pair.
        weight: share of the pair among the entries of its graph; sums to one over the pairs of a graph.
    """

    x: Float[Tensor, "b n f"]
    is_node: Bool[Tensor, "b n"]
    edge_index: Int[Tensor, "2 e"]
    pairs: Int[Tensor, "2 p"]
    is_edge: Bool[Tensor, " p"]
    owner: Int[Tensor, " p"]
    weight: Float[Tensor, " p"]
    _prepared: dict[str, tuple[SparseOperator, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.x)

    def propagated(self, kind: str) -> tuple[SparseOperator, Float[Tensor, "b n f"]]:
        """The neighbourhood operator of a kind of network and its product with the features, computed once."""
        if kind not in self._prepared:
            matrix = neighborhood_operator(kind, self.edge_index, self.is_node.numel())
            self._prepared[kind] = matrix, (matrix @ self.x.flatten(0, 1)).view_as(self.x)
        return self._prepared[kind]


def neighborhood_operator(kind: str, edge_index: Int[Tensor, "2 e"], n_nodes: int) -> SparseOperator:
    r"""How a layer gathers neighbours, as a sparse matrix with rows for targets.

    GCN: $\tilde D^{-1/2} (A + I) \tilde D^{-1/2}$; SAGE: the mean of the neighbours; GIN: $A + I$.
    """
    sources, targets = edge_index
    if kind in ("GCN", "GIN"):
        loops = torch.arange(n_nodes, device=edge_index.device)
        sources, targets = torch.cat([sources, loops]), torch.cat([targets, loops])
    values = torch.ones(len(sources), device=edge_index.device)
    degrees = torch.bincount(targets, minlength=n_nodes).float().clamp_min(1)
    if kind == "GCN":
        values = (degrees[sources] * degrees[targets]).rsqrt()
    elif kind == "SAGE":
        values = 1 / degrees[targets]
    shape = (n_nodes, n_nodes)
    return SparseOperator(
        compressed_rows(targets, sources, values, shape), compressed_rows(sources, targets, values, shape)
    )


@dataclass(frozen=True)
class Network:
    """Copies of one encoder with a linear classifier, side by side.

    Args:
        kind: one of `KINDS`.
        weights: all trainable parameters with PyG's names and a leading axis of copies.
        buffers: running mean and variance of batch normalisation (MLP only); not weights.
    """

    kind: str
    weights: Weights
    buffers: Weights

    def __len__(self) -> int:
        return len(self.weights["classifier.bias"])

    def copies(self, count: int) -> "Network":
        """The network repeated, with memory of its own; it must hold one copy."""
        if len(self) != 1:
            raise ValueError(f"a network must have one copy to be repeated, got {len(self)}")
        return self._mapped(lambda p: p.detach().repeat(count, *[1] * (p.dim() - 1)))

    def copy(self, index: int) -> "Network":
        """One of the copies."""
        return self._mapped(lambda p: p.detach()[index : index + 1].clone())

    def vector(self) -> Float[Tensor, "b w"]:
        """All trainable parameters of each copy in one row; buffers are left out."""
        return torch.cat([p.flatten(1) for p in self.weights.values()], dim=1)

    def embeddings(self, graphs: GraphBatch, *, is_training: bool) -> Float[Tensor, "b n c"]:
        """Output of the encoder; in training, batch normalisation uses and records the graph's own statistics."""
        if self.kind == "MLP":
            h = self._linear("lins.0", graphs.x)
            h = batch_norm(h, self.weights, self.buffers, graphs.is_node, is_training=is_training)
            return self._linear("lins.1", h.relu())
        if self.kind == "GAT":
            return self._attention(1, self._attention(0, graphs.x, graphs).relu(), graphs)
        operator, gathered = graphs.propagated(self.kind)

        def gather(h: Tensor) -> Tensor:
            return (operator @ h.reshape(-1, h.shape[-1])).view_as(h)

        if self.kind == "GCN":
            h = self._linear("convs.0.lin", gathered, bias="convs.0.bias").relu()
            return gather(self._linear("convs.1.lin", h, bias="")) + self.weights["convs.1.bias"][:, None]
        if self.kind == "SAGE":
            h = self._linear("convs.0.lin_l", gathered) + self._linear("convs.0.lin_r", graphs.x, bias="")
            h = h.relu()
            far = gather(self._linear("convs.1.lin_l", h, bias=""))
            return far + self._linear("convs.1.lin_r", h, bias="convs.1.lin_l.bias")
        h = self._linear("convs.0.nn.lins.1", self._linear("convs.0.nn.lins.0", gathered).relu()).relu()
        first = gather(self._linear("convs.1.nn.lins.0", h, bias="")) + self.weights["convs.1.nn.lins.0.bias"][:, None]
        return self._linear("convs.1.nn.lins.1", first.relu())

    def logits(self, embeddings: Float[Tensor, "b n c"]) -> Float[Tensor, "b n k"]:
        """The linear classifier on embeddings."""
        return self._linear("classifier", embeddings)

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> "Network":
        parts = ({name: function(p) for name, p in part.items()} for part in (self.weights, self.buffers))
        return Network(self.kind, *parts)

    def _linear(self, name: str, h: Tensor, bias: str | None = None) -> Tensor:
        matrix = self.weights[f"{name}.weight"].transpose(1, 2)
        bias = f"{name}.bias" if bias is None else bias
        return torch.baddbmm(self.weights[bias][:, None], h, matrix) if bias else torch.bmm(h, matrix)

    def _attention(self, layer: int, h: Tensor, graphs: GraphBatch) -> Tensor:
        from torch_geometric.utils import softmax

        name, size = f"convs.{layer}", graphs.is_node.numel()
        h = self._linear(f"{name}.lin", h, bias="")
        source, target = ((h * self.weights[f"{name}.att_{end}"][:, 0]).sum(-1).flatten() for end in ("src", "dst"))
        loops = torch.arange(size, device=h.device).expand(2, -1)
        sources, targets = torch.cat([graphs.edge_index, loops], dim=1)
        alpha = softmax(F.leaky_relu(source[sources] + target[targets], SLOPE), targets, num_nodes=size)
        flat = h.flatten(0, 1)
        mixed = torch.zeros_like(flat).index_add(0, targets, alpha[:, None] * flat[sources])
        return mixed.view_as(h) + self.weights[f"{name}.bias"][:, None]


def batch_norm(
    h: Float[Tensor, "b n d"], weights: Weights, buffers: Weights, is_node: Bool[Tensor, "b n"], *, is_training: bool
) -> Float[Tensor, "b n d"]:
    """Batch normalisation of each graph over its own nodes; in training it updates `buffers` in place."""
    mean, variance = buffers["mean"][:, None], buffers["var"][:, None]
    if is_training:
        mask, count = is_node[..., None], is_node.sum(1)[:, None, None]
        mean = (h * mask).sum(1, keepdim=True) / count
        variance = ((h - mean).square() * mask).sum(1, keepdim=True) / count
        with torch.no_grad():
            unbiased = variance * count / (count - 1).clamp_min(1)
            buffers["mean"].lerp_(mean[:, 0], MOMENTUM)
            buffers["var"].lerp_(unbiased[:, 0], MOMENTUM)
    scale, shift = (weights[f"norms.0.module.{name}"][:, None] for name in ("weight", "bias"))
    return (h - mean) * (variance + EPSILON).rsqrt() * scale + shift


def pyg_model(kind: str, n_features: int, n_hidden: int, width: int, n_classes: int) -> nn.ModuleDict:
    """PyG's two-layer encoder and a Xavier-initialised linear classifier; random numbers are torch's global ones.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"model must be one of {', '.join(KINDS)}, got {kind!r}")
    data_class()  # first, for its quiet import
    from torch_geometric.nn import GAT, GCN, GIN, MLP, GraphSAGE

    encoders = {"GCN": GCN, "SAGE": GraphSAGE, "GAT": GAT, "GIN": GIN, "MLP": MLP}
    encoder = encoders[kind](in_channels=n_features, hidden_channels=n_hidden, out_channels=width, num_layers=2)
    classifier = nn.Linear(width, n_classes)
    nn.init.xavier_uniform_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    return nn.ModuleDict({"encoder": encoder, "classifier": classifier})


def initial_network(
    kind: str, n_features: int, *, n_hidden: int, width: int, n_classes: int, generator: torch.Generator
) -> Network:
    r"""One copy at its initial weights $\theta_0$, drawn as PyG draws them.

    Args:
        kind: one of `KINDS`.
        n_features: input features.
        n_hidden: hidden width (paper: 256).
        width: width of the embeddings (paper: 32).
        n_classes: classes.
        generator: source of the weights; they lie on its device.
    """
    with seeded(generator):
        model = pyg_model(kind, n_features, n_hidden, width, n_classes)
    device = generator.device
    weights = {
        name.removeprefix("encoder."): p.detach()[None].to(device).clone() for name, p in model.named_parameters()
    }
    buffers = {}
    if kind == "MLP":
        buffers = {"mean": torch.zeros(1, n_hidden, device=device), "var": torch.ones(1, n_hidden, device=device)}
    return Network(kind, weights, buffers)


def stacked(networks: list[Network]) -> Network:
    """Several networks of one kind as the copies of one."""
    weights, buffers = (
        {name: torch.cat([getattr(network, part)[name] for network in networks]) for name in getattr(networks[0], part)}
        for part in ("weights", "buffers")
    )
    return replace(networks[0], weights=weights, buffers=buffers)
