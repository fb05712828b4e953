"""Tasks of the LargeGT chapter: two-view graphs, disconnected clusters, the paper's large benchmarks."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from glocal.data import load, stratified_split
from glocal.data.errors import DataError
from glocal.data.roots import data_root
from glocal.data.types import TableData
from glocal.graphs.node_tasks import NodeTask, nearest_neighbor_graph, node_task, principal_components
from glocal.seeding import torch_generator

OGB_SPLITS = {"ogbn-products": "sales_ranking", "ogbn-papers100M": "time"}
PLANETOID = ("cora", "citeseer", "pubmed")
BENCHMARKS = (*OGB_SPLITS, "snap-patents", *PLANETOID)
SHARES = (0.3, 0.2, 0.5)
FAKE_SIZES = {"ogbn-products": (100, 47), "snap-patents": (269, 5), "ogbn-papers100M": (128, 172)}


def two_view_graph(
    name: str,
    n_nodes: int,
    *,
    k: int = 6,
    n_components: int = 24,
    noise: float = 0.7,
    fake: bool = False,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "n f"], Int[Tensor, "2 e"], Int[Tensor, " n"]]:
    r"""A graph whose edges know what its features do not: neighbours by one half of the inputs, features the other.

    For images (`"mnist5k"`) edges compare left halves and features are leading components of the right halves, of mean
    square one, with added noise. For tables (`"letter"`) the columns are standardised and halved.

    Args:
        name: a data set of images or a table.
        n_nodes: size of the stratified sample (up to rounding per class).
        k: nearest neighbours, symmetrised.
        n_components: principal components of the right halves of images.
        noise: standard deviation of the noise on these components.
        fake: random inputs of the same shape.
        generator: source of the sample and of the noise.

    Returns:
        Features, edges in both directions, and classes.
    """
    data = load(name, fake=fake)
    share = min(1.0, n_nodes / len(data.labels))
    rows = stratified_split(data.labels, (share,), generator=generator)[0].sort().values
    y = data.labels[rows]
    if isinstance(data, TableData):
        x = data.x[rows]
        x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6)
        half = x.shape[1] // 2
        return x[:, half:].contiguous(), nearest_neighbor_graph(x[:, :half], k), y
    left, right = (part.flatten(1) for part in data.images[rows].chunk(2, dim=-1))
    x = principal_components(right, n_components)
    x = x + noise * torch.randn(x.shape, generator=generator)
    return x, nearest_neighbor_graph(left, k), y


def split_task(
    x: Float[Tensor, "n f"],
    edge_index: Int[Tensor, "2 e"],
    y: Int[Tensor, " n"],
    shares: tuple[float, float, float] = SHARES,
    *,
    generator: torch.Generator,
) -> NodeTask:
    """A stratified random split of a labelled graph into `shares` for training, validation and test.

    Raises:
        ValueError: for shares that leave a class without a node.
    """
    used = stratified_split(y, shares[:2], generator=generator)
    train, val = (part.sort().values for part in used)
    rest = torch.ones(len(y), dtype=torch.bool)
    rest[torch.cat([train, val])] = False
    return NodeTask(x, edge_index, y, train, val, rest.nonzero().flatten(), int(y.max()) + 1)


def cluster_graph(
    n_nodes: int = 4000,
    *,
    n_classes: int = 4,
    clusters_per_class: int = 8,
    degree: float = 8.0,
    n_features: int = 16,
    signal: float = 1.0,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "n f"], Int[Tensor, "2 e"], Int[Tensor, " n"]]:
    r"""Contextual block model whose classes fall into disconnected clusters: $x_i = \delta m_{y_i} + \mathcal N(0, I)$.

    Args:
        n_nodes: nodes, spread evenly over the clusters.
        n_classes: classes, with orthonormal means $m$.
        clusters_per_class: random graphs that make up one class, without an edge between them.
        degree: mean degree.
        n_features: feature dimension, at least the number of classes.
        signal: $\delta$.
        generator: source of edges, means and features.

    Returns:
        Features, edges in both directions, and classes.
    """
    n_clusters = n_classes * clusters_per_class
    size = n_nodes // n_clusters
    probability = degree / (size - 1)
    upper = (torch.rand(n_clusters, size, size, generator=generator) < probability).triu(1)
    cluster, source, target = upper.nonzero().T
    edges = torch.stack([cluster * size + source, cluster * size + target])
    y = torch.arange(n_clusters * size) // (size * clusters_per_class)
    means = torch.linalg.qr(torch.randn(n_features, n_classes, generator=generator)).Q.T
    x = signal * means[y] + torch.randn(len(y), n_features, generator=generator)
    return x, torch.cat([edges, edges.flip(0)], dim=1), y


def random_graph(n_nodes: int, degree: float, n_features: int, *, generator: torch.Generator) -> NodeTask:
    """Uniform random edges, Gaussian features and labels without meaning, for measurements of time; no split.

    Args:
        n_nodes: nodes.
        degree: mean degree.
        n_features: feature dimension.
        generator: source of everything.
    """
    ends = torch.randint(n_nodes, (2, int(n_nodes * degree / 2)), generator=generator)
    ends = ends[:, ends[0] != ends[1]]
    code = torch.cat([ends[0] * n_nodes + ends[1], ends[1] * n_nodes + ends[0]]).unique()
    x = torch.randn(n_nodes, n_features, generator=generator)
    y = torch.randint(2, (n_nodes,), generator=generator)
    nodes = torch.arange(n_nodes)
    return NodeTask(x, torch.stack([code // n_nodes, code % n_nodes]), y, nodes, nodes[:0], nodes[:0], 2)


def benchmark(name: str, *, fake: bool = False, root: str | Path | None = None, generator: torch.Generator) -> NodeTask:
    """One of the paper's graphs, or a citation graph with its public split.

    Edges are those LargeGT uses: both directions for ogbn-products and ogbn-papers100M, directed as given for
    snap-patents. The split is the official one, and random (50/25/25) for snap-patents.

    Args:
        name: one of `BENCHMARKS`.
        fake: a small random graph with the same number of features and classes.
        root: folder of the data; None for `$GLOCAL_DATA`.
        generator: source of a random split.

    Raises:
        ValueError: for an unknown name.
        DataError: for a missing or damaged file; the message says where it belongs and where it comes from.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"name must be one of {', '.join(BENCHMARKS)}, got {name!r}")
    if name in PLANETOID:
        data = load(name, fake=fake, root=None if fake else root)
        return node_task(data, features="words", split="public", generator=generator)
    if fake:
        return _fake(*FAKE_SIZES[name])
    if name == "snap-patents":
        return read_snap_patents(data_root(root) / name / "snap_patents.mat", generator=generator)
    return read_ogb(data_root(root) / name.replace("-", "_"), OGB_SPLITS[name])


def read_ogb(folder: Path, split: str) -> NodeTask:
    """A node-classification graph in the raw format of OGB, which its package unpacks from the downloaded archive.

    Text (`raw/edge.csv.gz`, `node-feat.csv.gz`, `node-label.csv.gz`) or binary (`raw/data.npz`, `node-label.npz`), and
    `split/<split>/{train,valid,test}.csv.gz`. Every edge gets its reverse; nodes without a label get class -1.

    Args:
        folder: `ogbn_products`, `ogbn_papers100M`, ...
        split: name of the official split.

    Raises:
        DataError: for a missing file.
    """
    import pandas as pd

    def table(relative: str) -> np.ndarray:
        values: np.ndarray = pd.read_csv(_existing(folder / relative, _OGB_REPAIR), header=None).to_numpy(copy=True)
        return values

    if (folder / "raw" / "data.npz").is_file():
        with np.load(folder / "raw" / "data.npz") as stored:
            edges, x = stored["edge_index"], stored["node_feat"]
        with np.load(_existing(folder / "raw" / "node-label.npz", _OGB_REPAIR)) as stored:
            labels = stored["node_label"]
    else:
        edges, x, labels = (table(f"raw/{part}.csv.gz") for part in ("edge", "node-feat", "node-label"))
        edges = edges.T
    n = len(x)
    code = np.concatenate([edges[0] * n + edges[1], edges[1] * n + edges[0]]).astype(np.int64)
    code = np.unique(code[code // n != code % n])
    train, val, test = (
        torch.from_numpy(table(f"split/{split}/{part}.csv.gz").ravel()) for part in ("train", "valid", "test")
    )
    y = torch.from_numpy(np.nan_to_num(labels.ravel().astype(np.float64), nan=-1).astype(np.int64))
    edge_index = torch.from_numpy(np.stack([code // n, code % n]))
    return NodeTask(torch.from_numpy(x.astype(np.float32)), edge_index, y, train, val, test, int(y.max()) + 1)


def read_snap_patents(path: Path, *, generator: torch.Generator) -> NodeTask:
    """snap-patents from the MATLAB file of the CUAI benchmarks; classes are fifths of the years, edges directed.

    Args:
        path: `snap_patents.mat` with `edge_index`, `node_feat` (sparse) and `years`.
        generator: source of the split 50/25/25.

    Raises:
        DataError: for a missing file.
    """
    from scipy.io import loadmat

    repair = (
        "put snap_patents.mat of CUAI/Non-Homophily-Large-Scale (its Google Drive link) into $GLOCAL_DATA/snap-patents/"
    )
    stored = loadmat(_existing(path, repair))
    x = torch.from_numpy(np.asarray(stored["node_feat"].todense(), dtype=np.float32))
    n = len(x)
    source, target = stored["edge_index"].astype(np.int64)
    code = np.unique((source * n + target)[source != target])
    order = torch.randperm(n, generator=generator)
    train, val, test = order.split([n // 2, n // 4, n - n // 2 - n // 4])
    y = even_quantiles(torch.from_numpy(stored["years"].ravel().astype(np.int64)), 5)
    return NodeTask(x, torch.from_numpy(np.stack([code // n, code % n])), y, train, val, test, 5)


def even_quantiles(values: Int[Tensor, " n"], n_classes: int) -> Int[Tensor, " n"]:
    """Class of each value when the values are cut at their quantiles; equal values stay together.

    Args:
        values: e.g. years.
        n_classes: classes, as equal in size as ties allow.
    """
    shares = np.arange(1, n_classes) / n_classes
    cuts = np.quantile(values.numpy(), shares)  # torch.quantile refuses large inputs
    return torch.bucketize(values.double(), torch.from_numpy(cuts), right=True)


_OGB_REPAIR = (
    "download the archive with the ogb package (NodePropPredDataset) or from snap.stanford.edu/ogb/data/nodeproppred "
    "and unpack it into $GLOCAL_DATA, so that e.g. $GLOCAL_DATA/ogbn_products/raw/edge.csv.gz exists"
)


def _existing(path: Path, repair: str) -> Path:
    if not path.is_file():
        raise DataError(path, "the file does not exist", repair)
    return path


def _fake(n_features: int, n_classes: int, n_nodes: int = 1000) -> NodeTask:
    generator = torch_generator(0, "fake", "large graph", n_classes)
    graph = random_graph(n_nodes, 8.0, n_features, generator=generator)
    y = torch.arange(n_nodes) % n_classes
    half, fourth = n_nodes // 2, n_nodes // 4
    train, val, test = torch.randperm(n_nodes, generator=generator).split([half, fourth, n_nodes - half - fourth])
    return NodeTask(graph.x, graph.edge_index, y, train, val, test, n_classes)
