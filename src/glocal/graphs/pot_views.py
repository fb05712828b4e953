r"""Views of one graph for many runs side by side, and the entries that deletions within a budget can give.

The matrix of every view has the same pattern, that of $A + I$; a dropped edge is an entry of value zero. So the
index structure is built once, and the runs are blocks on a diagonal.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glocal.graphs.sparse import SparseOperator, compressed_rows


@dataclass(frozen=True)
class Pattern:
    """The entries of $A + I$ in the order of rows, then columns.

    Args:
        rows: node $i$ of each entry.
        columns: node $j$ of each entry.
        reverse: position of the entry $(j, i)$.
        starts: where each row begins; one more than there are nodes.
        degrees: neighbours of each node, loops not counted.
    """

    rows: Int[Tensor, " e"]
    columns: Int[Tensor, " e"]
    reverse: Int[Tensor, " e"]
    starts: Int[Tensor, " _"]
    degrees: Int[Tensor, " n"]
    _blocks: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return len(self.degrees)

    @property
    def is_loop(self) -> Bool[Tensor, " e"]:
        """Which entries lie on the diagonal."""
        return self.rows == self.columns

    def operator(self, values: Float[Tensor, "runs e"]) -> SparseOperator:
        """The matrices of all runs as blocks on a diagonal; see `propagate`."""
        runs, size = len(values), len(values) * self.n_nodes
        if runs not in self._blocks:
            block = torch.arange(runs, device=values.device)[:, None]
            starts = (self.starts[:-1] + block * len(self.rows)).flatten()
            starts = torch.cat([starts, starts.new_tensor([runs * len(self.rows)])])
            self._blocks[runs] = starts, (self.columns + block * self.n_nodes).flatten()
        starts, columns = self._blocks[runs]
        matrix, transposed = (
            torch.sparse_csr_tensor(starts, columns, v.reshape(-1), (size, size), check_invariants=False)
            for v in (values, values[:, self.reverse])
        )
        return SparseOperator(matrix, transposed)

    def normalized(self, kept: Float[Tensor, "runs e"]) -> Float[Tensor, "runs e"]:
        r"""Entries of $\hat A = \tilde D^{-1/2} (A' + I) \tilde D^{-1/2}$ for the kept entries $A'$ (0 or 1).

        $\tilde D_{ii}$ counts what is left in row $i$, the loop included.
        """
        degrees = kept.new_zeros(len(kept), self.n_nodes).index_add_(1, self.rows, kept)
        scale = degrees.rsqrt()
        return kept * scale[:, self.rows] * scale[:, self.columns]


def pattern(edge_index: Int[Tensor, "2 e"], n_nodes: int) -> Pattern:
    """The pattern of a graph.

    Args:
        edge_index: both directions of every undirected edge, without loops.
        n_nodes: number of nodes; nodes without edges keep their loop.

    Raises:
        ValueError: if a direction is missing, an edge occurs twice, or there are loops.
    """
    if bool((edge_index[0] == edge_index[1]).any()):
        raise ValueError("edge_index must come without loops: they are added here; remove them first")
    loops = torch.arange(n_nodes, device=edge_index.device)
    rows, columns = torch.cat([edge_index, loops.expand(2, -1)], dim=1)
    code = (rows * n_nodes + columns).sort().values
    rows, columns = code // n_nodes, code % n_nodes
    reverse = torch.searchsorted(code, columns * n_nodes + rows).clamp_max(len(code) - 1)
    if not code[reverse].equal(columns * n_nodes + rows) or bool((code.diff() == 0).any()):
        raise ValueError("edge_index must hold both directions of every edge exactly once: use to_undirected first")
    matrix = compressed_rows(rows, columns, torch.ones(len(rows), device=rows.device), (n_nodes, n_nodes))
    return Pattern(rows, columns, reverse, matrix.crow_indices(), torch.bincount(rows, minlength=n_nodes) - 1)


def propagate(operator: SparseOperator, x: Float[Tensor, "runs n c"]) -> Float[Tensor, "runs n c"]:
    """Product of every run's matrix with its block of `x`."""
    return (operator @ x.flatten(0, 1)).view(x.shape)


def whole(graph: Pattern, runs: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "runs e"]:
    """All entries kept."""
    return torch.ones(runs, len(graph.rows), dtype=dtype, device=graph.rows.device)


def budgets(degrees: Int[Tensor, " n"], rate: float) -> Int[Tensor, " n"]:
    r"""Edges that may be deleted at each node: $m_i = \min(\max(d_i - 1, 0), \mathrm{round}(p\, d_i))$.

    Halves are rounded to the even neighbour, as NumPy does.

    Raises:
        ValueError: for a rate outside [0, 1].

    Source: the definition of the augmentation set; `round` is that of the official code.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be in [0, 1], got {rate}")
    return torch.minimum((degrees - 1).clamp_min(0), (rate * degrees.double()).round().long())


def entry_bounds(graph: Pattern, rate: float, dtype: torch.dtype = torch.float32) -> Float[Tensor, "2 e"]:
    r"""Lower and upper bounds of the entries of $\hat A$ over all deletions within the budget.

    $0 \le \hat A_{ij} \le [(d_i + 1 - m_i)(d_j + 1 - m_j)]^{-1/2}$ for an edge; the upper bound holds on the diagonal
    too, where $\hat A_{ii} \ge 1/(d_i + 1)$, because a deletion can only raise the entry.
    """
    left = (graph.degrees + 1 - budgets(graph.degrees, rate)).to(dtype).rsqrt()
    high = left[graph.rows] * left[graph.columns]
    low = graph.is_loop / (graph.degrees[graph.rows] + 1).to(dtype)
    return torch.stack([low, high])


def dropped(
    graph: Pattern, rates: Float[Tensor, " e"], runs: int, *, generator: torch.Generator
) -> Float[Tensor, "runs e"]:
    """Entries kept when each direction of each edge is dropped independently with its rate; loops stay."""
    drawn = torch.rand(runs, len(rates), generator=generator, device=rates.device)
    return ((drawn >= rates) | graph.is_loop).to(rates.dtype)


def uniform_rates(graph: Pattern, rate: float) -> Float[Tensor, " e"]:
    """The same drop rate for every edge (GRACE)."""
    return torch.full((len(graph.rows),), rate, device=graph.rows.device)


def degree_rates(graph: Pattern, rate: float, *, ceiling: float = 0.7) -> Float[Tensor, " e"]:
    r"""Drop rates that spare edges to central nodes: $\min(p\,\frac{s_{\max} - s_{ij}}{s_{\max} - \bar s}, c)$.

    $s_{ij} = \log d_j$ is the centrality of the target $j$, $\bar s$ its mean over the edges.

    Args:
        graph: the pattern.
        rate: mean drop rate $p$ before the cut.
        ceiling: largest rate $c$.

    Source: Zhu et al., "Graph contrastive learning with adaptive augmentation", WWW 2021 (degree).
    """
    score = graph.degrees.clamp_min(1).double().log()[graph.columns]
    edges = ~graph.is_loop
    top, mean = score[edges].max(), score[edges].mean()
    return (rate * (top - score) / (top - mean).clamp_min(1e-12)).clamp(0, ceiling).float()


def budgeted_deletions(
    graph: Pattern, rate: float, count: int, *, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "count e"]:
    """Entries kept by random deletions of undirected edges that respect the budget of every node.

    Each draw goes through the edges in random order and deletes while both ends allow it; it stops after a random
    share of them, so that small and maximal deletions both occur.

    Args:
        graph: the pattern.
        rate: the drop rate that sets the budgets.
        count: number of draws.
        generator: on the CPU.
        dtype: of the result.
    """
    rows, columns = graph.rows.cpu(), graph.columns.cpu()
    edges = (rows < columns).nonzero().flatten()
    pairs = torch.stack([rows[edges], columns[edges]], 1).tolist()
    limits = budgets(graph.degrees.cpu(), rate).tolist()
    kept = torch.ones(count, len(rows), dtype=dtype)
    for draw in range(count):
        left, gone = list(limits), []
        share = float(torch.rand((), generator=generator))
        order = torch.randperm(len(edges), generator=generator)[: round(share * len(edges) + 0.5)]
        for position in order.tolist():
            i, j = pairs[position]
            if left[i] and left[j]:
                left[i] -= 1
                left[j] -= 1
                gone.append(position)
        entries = edges[gone]
        kept[draw, entries] = 0
        kept[draw, graph.reverse.cpu()[entries]] = 0
    return kept.to(graph.rows.device)
