"""What LargeGT computes once before training: samples of two hops, features of several hops, structural encodings."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import eigsh
from torch import Tensor

from glocal.graphs.sparse import compressed_rows


def adjacency(edge_index: Int[Tensor, "2 e"], n_nodes: int) -> csr_matrix:
    """The pattern of $A$ with ones; row $i$ holds the nodes that the edges of source $i$ point to."""
    source, target = edge_index.cpu().numpy()
    graph = csr_matrix((np.ones(len(source), dtype=np.float32), (source, target)), shape=(n_nodes, n_nodes))
    graph.data[:] = 1
    return graph


def draw_positions(lengths: Int[np.ndarray, " n"], k: int, *, generator: np.random.Generator) -> Int[np.ndarray, "n k"]:
    """For each row `k` different positions below its length, all sets equally likely; rows side by side.

    Floyd's method: at step `j` draw from the first `length - k + j + 1` positions; if that position is taken, take
    the last of them. `k` vectorised steps, whatever the lengths.

    Args:
        lengths: each at least `k`.
        k: draws per row.
        generator: source of randomness.

    Raises:
        ValueError: for a row that is too short.
    """
    if len(lengths) and lengths.min() < k:
        raise ValueError(f"lengths must be at least k = {k}, got {lengths.min()}: tile shorter rows instead")
    chosen = np.empty((k, len(lengths)), dtype=np.int64)
    for j in range(k):
        last = lengths - k + j
        drawn = (generator.random(len(lengths)) * (last + 1)).astype(np.int64)
        chosen[j] = np.where((chosen[:j] == drawn).any(0), last, drawn)
    return chosen.T


def two_hop_samples(
    graph: csr_matrix,
    sample_len: int,
    *,
    nodes: Int[np.ndarray, " m"] | None = None,
    chunk: int = 1024,
    generator: np.random.Generator,
) -> Int[np.ndarray, "m k"]:
    r"""$S_i$: the node itself and $K - 1$ draws from the list $\mathcal N_1(i) \Vert \mathcal N_2(i)$.

    $\mathcal N_1$ are the columns of row $i$ of $A$, $\mathcal N_2$ those of $A^2$, which contain $i$ itself and may
    contain $\mathcal N_1$: nodes in both parts are twice as likely. Draws are without replacement over positions of the
    list. A shorter list is tiled and cut; a node without neighbours gets uniform nodes of the whole graph.

    Args:
        graph: $A$, from `adjacency`.
        sample_len: $K$, the target included.
        nodes: targets; None for all nodes.
        chunk: rows of $A^2$ held at a time; the memory of $A^2$ is that of its densest chunk.
        generator: source of randomness.

    Raises:
        ValueError: for fewer than two tokens.

    Source: the offline sampling of the paper, in the order of its code.
    """
    if sample_len < 2:
        raise ValueError(f"sample_len must be at least 2, the target and one more, got {sample_len}")
    n, k = graph.shape[0], sample_len - 1
    nodes = np.arange(n) if nodes is None else nodes
    samples = np.empty((len(nodes), sample_len), dtype=np.int32)
    for start in range(0, len(nodes), chunk):
        rows = nodes[start : start + chunk]
        first = graph[rows]
        second = first @ graph
        n_first, length = np.diff(first.indptr), np.diff(first.indptr) + np.diff(second.indptr)
        position = np.arange(k) % np.maximum(length, 1)[:, None]
        is_long = length >= k
        position[is_long] = draw_positions(length[is_long].astype(np.int64), k, generator=generator)
        drawn = generator.integers(n, size=(len(rows), k))
        of_row, column = np.nonzero((length > 0)[:, None] & np.ones(k, dtype=bool))
        place = position[of_row, column]
        is_first = place < n_first[of_row]
        r, p = of_row[is_first], place[is_first]
        drawn[r, column[is_first]] = first.indices[first.indptr[r] + p]
        r, p = of_row[~is_first], place[~is_first]
        drawn[r, column[~is_first]] = second.indices[second.indptr[r] + p - n_first[r]]
        samples[start : start + chunk] = np.column_stack([rows, drawn])
    return samples


def normalized_adjacency(edge_index: Int[Tensor, "2 e"], n_nodes: int) -> Float[Tensor, "n n"]:
    r"""$\hat A = D_c^{-1/2} (A + I) D_r^{-1/2}$ with the column sums $D_c$ and the row sums $D_r$ of $A + I$.

    For a symmetric $A$ this is the usual symmetric normalisation; for a directed graph it is not.

    Args:
        edge_index: directed edges without loops or repetitions.
        n_nodes: number of nodes.
    """
    loops = torch.arange(n_nodes, device=edge_index.device)
    rows, columns = torch.cat([edge_index, loops.expand(2, -1)], dim=1)
    row_sums, column_sums = (torch.bincount(index, minlength=n_nodes).double() for index in (rows, columns))
    values = (column_sums[rows] * row_sums[columns]).rsqrt().float()
    return compressed_rows(rows, columns, values, (n_nodes, n_nodes))


def hop_features(
    edge_index: Int[Tensor, "2 e"], x: Float[Tensor, "n f"], n_hops: int = 2
) -> Float[Tensor, "n tokens f"]:
    r"""$x_u, (\hat A X)_u, (\hat A^2 X)_u$: the tokens of every node side by side.

    Args:
        edge_index: directed edges without loops or repetitions.
        x: $X$.
        n_hops: highest power of $\hat A$.
    """
    matrix, hops = normalized_adjacency(edge_index, len(x)), [x]
    for _ in range(n_hops):
        hops.append(matrix @ hops[-1])
    return torch.stack(hops, dim=1)


@dataclass(frozen=True)
class TokenBank:
    """Everything that a batch needs, stored: training only gathers rows and never touches the graph.

    Args:
        hops: tokens of every node.
        samples: $S_i$ of every node.
        encoding: structural encodings.
        token_hops: how many of the tokens of a node are used; 3 is LargeGT.
        sample_len: how many entries of the samples are used; 1 for the target alone, None for all.
        device: where batches go; the stored rows stay where they are.
    """

    hops: Float[Tensor, "n h f"]
    samples: Int[Tensor, "n k"]
    encoding: Float[Tensor, "n g"]
    token_hops: int = 3
    sample_len: int | None = None
    device: str = "cpu"

    def __call__(self, nodes: Int[Tensor, " b"]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (batch, sample times hops, features), encodings and numbers of some target nodes."""
        nodes = nodes.cpu()
        sampled = self.samples[nodes, : self.sample_len]
        tokens = self.hops[sampled.long(), : self.token_hops].flatten(1, 2)
        return tokens.to(self.device), self.encoding[nodes].to(self.device), nodes.to(self.device)


def spectral_encoding(edge_index: Int[Tensor, "2 e"], n_nodes: int, dim: int) -> Float[Tensor, "n g"]:
    r"""Leading eigenvectors of the symmetrically normalised $A + I$, each scaled to unit mean square.

    Of an eigenvalue that many components share, ARPACK may return fewer eigenvectors than there are.

    Args:
        edge_index: both directions of every undirected edge.
        n_nodes: number of nodes.
        dim: $g$, below the number of nodes.
    """
    loops = csr_matrix((np.ones(n_nodes), (np.arange(n_nodes),) * 2), shape=(n_nodes, n_nodes))
    graph = adjacency(edge_index, n_nodes) + loops
    root = np.sqrt(np.asarray(graph.sum(1)).ravel())
    scaled = graph.multiply(1 / root[:, None]).multiply(1 / root[None, :]).tocsr()
    start = np.random.default_rng(0).standard_normal(n_nodes)  # ARPACK's start; any will do, but always the same
    _, vectors = eigsh(scaled, k=dim, which="LA", v0=start)
    return torch.from_numpy(vectors * np.sqrt(n_nodes)).float()


def random_walks(
    graph: csr_matrix, starts: Int[Tensor, " b"], length: int, *, generator: torch.Generator
) -> Int[Tensor, "b steps"]:
    """Uniform random walks of `length` steps, the start included as the first column; dead ends stay.

    Args:
        graph: from `adjacency`.
        starts: first nodes, on the device of the generator.
        length: steps.
        generator: source of randomness.
    """
    device = generator.device
    offsets = torch.from_numpy(graph.indptr.astype(np.int64)).to(device)
    targets = torch.from_numpy(graph.indices.astype(np.int64)).to(device)
    walk = [starts]
    for _ in range(length):
        here = walk[-1]
        degree = offsets[here + 1] - offsets[here]
        drawn = (torch.rand(len(here), generator=generator, device=device) * degree).long()
        place = (offsets[here] + drawn).clamp(max=len(targets) - 1)
        walk.append(torch.where(degree > 0, targets[place], here))
    return torch.stack(walk, dim=1)


def node2vec_encoding(
    graph: csr_matrix,
    dim: int,
    *,
    walk_length: int = 40,
    context: int = 20,
    walks_per_node: int = 10,
    lr: float = 0.01,
    epochs: int = 1,
    batch_size: int = 256,
    max_batches: int | None = None,
    generator: torch.Generator,
) -> Float[Tensor, "n g"]:
    r"""node2vec with $p = q = 1$: skip-grams with one negative per positive over uniform random walks.

    PyG's `Node2Vec` needs torch-cluster or pyg-lib for its walks; this one does not.

    Args:
        graph: from `adjacency`.
        dim: $g$.
        walk_length: nodes of a walk.
        context: nodes of a window; the first is paired with the others.
        walks_per_node: walks from every node per epoch.
        lr: learning rate of sparse Adam.
        epochs: passes over all start nodes.
        batch_size: start nodes per step.
        max_batches: stop after so many steps; None for all.
        generator: source of randomness; its device is used.

    Source: Grover and Leskovec, KDD 2016; settings of LargeGT's script for ogbn-products.
    """
    n, device = graph.shape[0], generator.device
    table = torch.nn.Embedding(n, dim, sparse=True, device=device)
    with torch.no_grad():
        table.weight.copy_(torch.randn(n, dim, generator=generator, device=device))
    optimizer = torch.optim.SparseAdam(table.parameters(), lr=lr)
    order = torch.cat([torch.randperm(n, generator=generator, device=device) for _ in range(epochs)])
    for starts in order.split(batch_size)[:max_batches]:
        walks = random_walks(graph, starts.repeat(walks_per_node), walk_length - 1, generator=generator)
        windows = walks.unfold(1, context, 1).flatten(0, 1)
        noise = torch.randint(n, windows[:, 1:].shape, generator=generator, device=device)
        center = table(windows[:, :1])
        near, far = ((center * table(other)).sum(-1) for other in (windows[:, 1:], noise))
        optimizer.zero_grad()
        (F.softplus(-near).mean() + F.softplus(far).mean()).backward()
        optimizer.step()
    return table.weight.detach().cpu()
