r"""Networks with one first layer per input, and their training with consistency over draws; runs train side by side.

Liu et al., *Local Augmentation for Graph Neural Networks* (ICML 2022, arXiv:2109.03856). With no generated inputs, one
sample and no consistency they are the plain backbones.
"""

import copy
import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from glocal.data.pyg import data_class
from glocal.graphs.lagnn_products import SPARSE_SHARE, SparseInput, by_run, classes_first, dropped
from glocal.graphs.node_classification import seeded
from glocal.graphs.node_tasks import NodeTask
from glocal.graphs.sparse import SparseOperator


class StackedBackbone(nn.Module):
    """Independent networks on one graph, which see the same draws; parameters have a leading axis of runs."""

    n_inputs: int
    operator: SparseOperator | None = None

    def prepared(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n f"] | SparseInput:
        """The real features in the form in which `forward` takes them at the least cost."""
        return x

    def passes(self, inputs: list[Any]) -> list[Float[Tensor, "n k r"]]:
        """The logits of one sample that enter the losses: of all inputs together."""
        return [self(inputs)]

    def twin(self) -> "StackedBackbone":
        """A copy with its own parameters on the same graph."""
        return copy.deepcopy(self, {id(self.operator): self.operator})

    def copy_runs(self, is_better: Bool[Tensor, " r"], other: "StackedBackbone") -> None:
        """Take over the parameters of the flagged runs from `other`."""
        with torch.no_grad():
            for mine, theirs in zip(self.parameters(), other.parameters(), strict=True):
                mask = is_better.view(-1, *[1] * (mine.dim() - 1))
                mine.copy_(torch.where(mask, theirs, mine))


class AugmentedGCN(StackedBackbone):
    r"""LA-GCN: $H_m = \mathrm{ReLU}(\hat A X_m W_m)$ per input, concatenated, then $\hat A H W$; dropout before both.

    Args:
        n_features: width of every input.
        n_hidden: $h$, width per input.
        n_classes: outputs.
        concat: $c$, number of generated inputs besides the real one; 0 gives a plain GCN.
        runs: number of networks.
        dropout: probability of dropping an entry. The mask of an input is shared by the runs, which share the
            input as well; hidden masks are their own.
        operator: $\hat A$.
        generator: source of the weights (uniform as Glorot and Bengio 2010).

    Source: Section on the downstream architecture; `AugmentedGCN.forward` is the official concatenation.
    """

    def __init__(
        self,
        n_features: int,
        n_hidden: int,
        n_classes: int,
        *,
        concat: int = 1,
        runs: int = 1,
        dropout: float = 0.5,
        operator: SparseOperator,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.operator: SparseOperator
        self.first = nn.ParameterList(_glorot(runs, n_features, n_hidden, generator) for _ in range(concat + 1))
        self.second = _glorot(runs, (concat + 1) * n_hidden, n_classes, generator)
        self.n_inputs, self.dropout, self.operator = concat + 1, dropout, operator

    def prepared(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n f"] | SparseInput:
        """The non-zero entries of the real features, if few entries are non-zero."""
        return SparseInput(x) if int(x.count_nonzero()) < SPARSE_SHARE * x.numel() else x

    def forward(self, inputs: list[Float[Tensor, "n f"] | SparseInput]) -> Float[Tensor, "n k r"]:
        """Logits from the real features and the generated ones, in this order."""
        h = dropped((self.operator @ self.per_input(inputs)).relu(), self.dropout, self.training)
        return classes_first(self.operator @ by_run(h, self.second))

    def per_input(self, inputs: list[Float[Tensor, "n f"] | SparseInput]) -> Float[Tensor, "n r mh"]:
        r"""$[X_m W_m]_m$ of all runs, in one product per input, whose transposes need no gradient."""
        products = []
        for x, weight in zip(inputs, self.first, strict=True):
            runs, f, h = weight.shape
            flat = weight.transpose(0, 1).reshape(f, runs * h)
            thinned = x.dropped if isinstance(x, SparseInput) else partial(dropped, x)
            products.append((thinned(self.dropout, self.training) @ flat).view(len(x), runs, h))
        return torch.cat(products, dim=2)


class AugmentedGCNII(AugmentedGCN):
    r"""LA-GCNII: $H^{l} = \mathrm{ReLU}(((1 - \alpha)\hat A H^{l-1} + \alpha H^0)((1 - \beta_l) I + \beta_l W_l))$.

    $H^0 = [\mathrm{ReLU}(X_m W_m)]_m$ and $\beta_l = \log(\lambda/l + 1)$. Arguments as in `AugmentedGCN`, and

    Args:
        n_layers: number of layers $l$.
        alpha: $\alpha$.
        theta: $\lambda$.

    Source: Chen et al., ICML 2020, equation 5; the concatenation as in LA-GCN.
    """

    def __init__(
        self,
        n_features: int,
        n_hidden: int,
        n_classes: int,
        *,
        concat: int = 1,
        runs: int = 1,
        dropout: float = 0.5,
        n_layers: int = 8,
        alpha: float = 0.1,
        theta: float = 0.5,
        operator: SparseOperator,
        generator: torch.Generator,
    ) -> None:
        options = {"concat": concat, "runs": runs, "dropout": dropout, "operator": operator, "generator": generator}
        super().__init__(n_features, n_hidden, n_classes, **options)  # type: ignore[arg-type]
        width = (concat + 1) * n_hidden
        self.layers = nn.ParameterList(_glorot(runs, width, width, generator) for _ in range(n_layers))
        self.alpha, self.theta = alpha, theta

    def forward(self, inputs: list[Float[Tensor, "n f"] | SparseInput]) -> Float[Tensor, "n k r"]:
        """Logits from the real features and the generated ones, in this order."""
        first = h = self.per_input(inputs).relu()
        for depth, weight in enumerate(self.layers, start=1):
            beta = math.log(self.theta / depth + 1)
            h = dropped(h, self.dropout, self.training)
            h = (1 - self.alpha) * (self.operator @ h) + self.alpha * first
            h = ((1 - beta) * h + beta * by_run(h, weight)).relu()
        return classes_first(by_run(dropped(h, self.dropout, self.training), self.second))


class _OwnLinear(nn.Module):
    """The linear map of an attention layer whose runs have inputs of their own, side by side."""

    def __init__(self, weight: Float[Tensor, "r a b"]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, h: Float[Tensor, "n ra"]) -> Float[Tensor, "n rb"]:
        return by_run(h.unflatten(1, (len(self.weight), -1)), self.weight).flatten(1)


def _side_by_side(layers: list[Any], *, have_own_inputs: bool) -> nn.Module:
    """PyG's attention layers of several runs as one: the heads of all runs are heads of one layer, run by run."""
    from torch_geometric.nn import GATConv

    like = layers[0]
    one: Any = GATConv(
        like.in_channels, like.out_channels, len(layers) * like.heads, dropout=like.dropout, add_self_loops=False
    )
    joined = {
        name: torch.cat([getattr(layer, name).detach() for layer in layers], dim=dim)
        for name, dim in (("att_src", 1), ("att_dst", 1), ("bias", 0))
    }
    for name, value in joined.items():
        setattr(one, name, nn.Parameter(value))
    weights = [layer.lin.weight.detach() for layer in layers]
    if have_own_inputs:
        one.lin = _OwnLinear(torch.stack([weight.T for weight in weights]).contiguous())
    else:
        one.lin.weight = nn.Parameter(torch.cat(weights))
    joint: nn.Module = one
    return joint


class AugmentedGAT(StackedBackbone):
    """LA-GAT from PyG's `GATConv`: one attention layer per input, their heads concatenated, one more to the classes.

    Args:
        n_features: width of every input.
        n_hidden: width per head.
        n_classes: outputs.
        heads: heads of each first layer.
        concat: number of generated inputs; 0 gives a plain GAT.
        runs: number of networks.
        dropout: on inputs, hidden features and attention coefficients; the mask of an input is shared by the runs.
        task: the graph.
        generator: source of the weights.
    """

    def __init__(
        self,
        n_features: int,
        n_hidden: int,
        n_classes: int,
        *,
        heads: int = 8,
        concat: int = 1,
        runs: int = 1,
        dropout: float = 0.6,
        task: NodeTask,
        generator: torch.Generator,
    ) -> None:
        data_class()
        from torch_geometric.nn import GATConv

        super().__init__()
        loops = torch.arange(task.n_nodes, device=task.y.device).expand(2, -1)
        self.edges = torch.cat([task.edge_index, loops], dim=1)
        self.n_inputs, self.dropout, self.n_runs = concat + 1, dropout, runs
        width = (concat + 1) * n_hidden * heads
        with seeded(generator):  # layer by layer: the law of initial weights depends on the number of heads
            firsts = [
                [GATConv(n_features, n_hidden, heads, dropout=dropout) for _ in range(concat + 1)] for _ in range(runs)
            ]
            seconds = [GATConv(width, n_classes, dropout=dropout) for _ in range(runs)]
            self.first = nn.ModuleList(
                _side_by_side(list(of), have_own_inputs=False) for of in zip(*firsts, strict=True)
            )
            self.second = _side_by_side(seconds, have_own_inputs=True)
        self.to(task.y.device)

    def forward(self, inputs: list[Float[Tensor, "n f"]]) -> Float[Tensor, "n k r"]:
        """Logits from the real features and the generated ones, in this order."""
        hidden = []
        for layer, x in zip(self.first, inputs, strict=True):
            h = layer(dropped(x, self.dropout, self.training), self.edges)
            hidden.append(F.elu(h).unflatten(1, (self.n_runs, -1)))
        h = dropped(torch.cat(hidden, dim=2), self.dropout, self.training)
        logits: Tensor = self.second(h.flatten(1), self.edges).unflatten(1, (self.n_runs, -1))
        return classes_first(logits)

    def copy_runs(self, is_better: Bool[Tensor, " r"], other: StackedBackbone) -> None:
        """Take over the parameters of the flagged runs from `other`."""
        with torch.no_grad():
            for mine, theirs in zip(self.parameters(), other.parameters(), strict=True):
                axis = 1 if mine.dim() == 3 and len(mine) == 1 else 0  # attention vectors have their heads there
                by_run = [p.unflatten(axis, (self.n_runs, -1)).movedim(axis, 0) for p in (mine, theirs)]
                by_run[0][is_better] = by_run[1][is_better]


def _glorot(runs: int, a: int, b: int, generator: torch.Generator) -> nn.Parameter:
    draws = 2 * torch.rand(runs, a, b, generator=generator, device=generator.device) - 1
    return nn.Parameter(draws * math.sqrt(6 / (a + b)))
