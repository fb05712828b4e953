r"""Networks with one first layer per input, and their training with consistency over draws; runs train side by side.

Liu et al., *Local Augmentation for Graph Neural Networks* (ICML 2022, arXiv:2109.03856). With no generated inputs, one
sample and no consistency they are the plain backbones.
"""

import copy
import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from glocal.data.pyg import data_class
from glocal.graphs.node_classification import seeded
from glocal.graphs.node_tasks import NodeTask
from glocal.graphs.sparse import SparseOperator, propagation_operator

BACKBONES = ("gcn", "gcnii", "gat")


def dropped(x: Float[Tensor, "*shape"], p: float, is_training: bool = True) -> Float[Tensor, "*shape"]:
    """Dropout whose mask takes 16 random bits per entry, several times faster on a CPU than Bernoulli draws.

    Args:
        x: features.
        p: probability of dropping an entry, rounded to a multiple of 1/65536; the others are scaled up.
        is_training: False returns `x` itself.
    """
    if not is_training or p == 0:
        return x
    threshold = round(65536 * p)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device).random_(-(2**63), None)
    is_kept = words.view(torch.int16)[: x.numel()].view(x.shape) >= threshold - 32768
    return x * (is_kept * (65536 / (65536 - threshold)))


class StackedBackbone(nn.Module):
    """Independent networks on one graph, which see the same draws; parameters have a leading axis of runs."""

    n_inputs: int
    operator: SparseOperator | None = None

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

    def forward(self, inputs: list[Float[Tensor, "n f"]]) -> Float[Tensor, "n r k"]:
        """Logits from the real features and the generated ones, in this order."""
        h = torch.cat([(self.operator @ z).relu() for z in self.per_input(inputs)], dim=2)
        h = dropped(h, self.dropout, self.training)
        return self.operator @ _by_run(h, self.second)

    def per_input(self, inputs: list[Float[Tensor, "n f"]]) -> list[Float[Tensor, "n r h"]]:
        r"""$X_m W_m$ of all runs in one product per input, whose transposes need no gradient."""
        products = []
        for x, weight in zip(inputs, self.first, strict=True):
            runs, f, h = weight.shape
            flat = weight.transpose(0, 1).reshape(f, runs * h)
            products.append((dropped(x, self.dropout, self.training) @ flat).view(len(x), runs, h))
        return products


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

    def forward(self, inputs: list[Float[Tensor, "n f"]]) -> Float[Tensor, "n r k"]:
        """Logits from the real features and the generated ones, in this order."""
        first = h = torch.cat([z.relu() for z in self.per_input(inputs)], dim=2)
        for depth, weight in enumerate(self.layers, start=1):
            beta = math.log(self.theta / depth + 1)
            h = dropped(h, self.dropout, self.training)
            h = (1 - self.alpha) * (self.operator @ h) + self.alpha * first
            h = ((1 - beta) * h + beta * _by_run(h, weight)).relu()
        return _by_run(dropped(h, self.dropout, self.training), self.second)


class AugmentedGAT(StackedBackbone):
    """LA-GAT from PyG's `GATConv`: one attention layer per input, their heads concatenated, one more to the classes.

    Args:
        n_features: width of every input.
        n_hidden: width per head.
        n_classes: outputs.
        heads: heads of each first layer.
        concat: number of generated inputs; 0 gives a plain GAT.
        runs: number of networks.
        dropout: on inputs, hidden features and attention coefficients.
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

        def layer(a: int, b: int, n_heads: int, joins: bool) -> nn.Module:
            return GATConv(a, b, n_heads, concat=joins, dropout=dropout, add_self_loops=False)

        with seeded(generator):
            self.first = nn.ModuleList(layer(n_features, n_hidden, heads, True) for _ in range(runs * (concat + 1)))
            width = (concat + 1) * n_hidden * heads
            self.second = nn.ModuleList(layer(width, n_classes, 1, False) for _ in range(runs))
        self.to(task.y.device)

    def forward(self, inputs: list[Float[Tensor, "n f"]]) -> Float[Tensor, "n r k"]:
        """Logits from the real features and the generated ones, in this order."""
        thinned = [dropped(x, self.dropout, self.training) for x in inputs]
        logits = []
        for run in range(self.n_runs):
            layers = list(self.first)[run * self.n_inputs : (run + 1) * self.n_inputs]
            h = torch.cat([F.elu(layer(x, self.edges)) for layer, x in zip(layers, thinned, strict=True)], dim=1)
            logits.append(self.second[run](dropped(h, self.dropout, self.training), self.edges))
        return torch.stack(logits, dim=1)

    def copy_runs(self, is_better: Bool[Tensor, " r"], other: StackedBackbone) -> None:
        """Take over the parameters of the flagged runs from `other`."""
        assert isinstance(other, AugmentedGAT)
        for run in is_better.nonzero().flatten().tolist():
            own = [*list(self.first)[run * self.n_inputs : (run + 1) * self.n_inputs], self.second[run]]
            theirs = [*list(other.first)[run * self.n_inputs : (run + 1) * self.n_inputs], other.second[run]]
            for mine, new in zip(own, theirs, strict=True):
                mine.load_state_dict(new.state_dict())


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
    operator: SparseOperator | None = None,
    generator: torch.Generator,
) -> StackedBackbone:
    """A backbone by name: `"gcn"`, `"gcnii"` (with `n_layers`) or `"gat"` (with `heads`).

    Raises:
        ValueError: for an unknown name or a negative number of generated inputs.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}, got {name!r}")
    if concat < 0:
        raise ValueError(f"concat must be at least 0, got {concat}")
    sizes = (task.x.shape[1], n_hidden, task.n_classes)
    if name == "gat":
        return AugmentedGAT(
            *sizes, heads=heads, concat=concat, runs=runs, dropout=dropout, task=task, generator=generator
        )
    operator = operator or propagation_operator(task.edge_index, task.n_nodes)
    if name == "gcn":
        return AugmentedGCN(*sizes, concat=concat, runs=runs, dropout=dropout, operator=operator, generator=generator)
    return AugmentedGCNII(
        *sizes, concat=concat, runs=runs, dropout=dropout, n_layers=n_layers, operator=operator, generator=generator
    )


def _glorot(runs: int, a: int, b: int, generator: torch.Generator) -> nn.Parameter:
    draws = 2 * torch.rand(runs, a, b, generator=generator, device=generator.device) - 1
    return nn.Parameter(draws * math.sqrt(6 / (a + b)))


def _by_run(h: Float[Tensor, "n r a"], weight: Float[Tensor, "r a b"]) -> Float[Tensor, "n r b"]:
    """Every run's features times its own matrix."""
    return torch.bmm(h.transpose(0, 1), weight).transpose(0, 1).contiguous()
