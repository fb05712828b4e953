"""Raw files of the full-scale graphs that the registry does not have: Amazon Photo, three citation networks, arXiv.

All are read from `$GLOCAL_DATA` in the formats in which they are published; nothing is downloaded.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from glocal.data.errors import DataError
from glocal.data.fakes import fake_graph
from glocal.data.pyg import data_class
from glocal.data.roots import data_root

if TYPE_CHECKING:
    from torch_geometric.data import Data

DOMAINS = ("acm", "dblp", "network")  # the third is called Citation in the paper
PHOTO = "Amazon/Photo/raw/amazon_electronics_photo.npz"
ARXIV = "ogbn_arxiv/raw"
FAKE_SIZES = {"photo": (7650, 745, 238_162, 8), "domain": (2000, 300, 12_000, 5), "arxiv": (3000, 128, 20_000, 40)}


def _present(root: str | Path | None, relative: str, how_to_get: str) -> Path:
    path = data_root(root) / relative
    if not path.is_file():
        raise DataError(path, "the file does not exist", how_to_get)
    return path


def fake_graph_like(name: str, seed: str = "") -> "Data":
    """A random graph for rehearsals, of the size of Amazon Photo, or smaller than a citation domain or arXiv."""
    n_nodes, n_features, n_edges, n_classes = FAKE_SIZES[name]
    return fake_graph(f"{name}{seed}", n_nodes=n_nodes, n_features=n_features, n_edges=n_edges, n_classes=n_classes)


def photo_graph(*, root: str | Path | None = None, fake: bool = False) -> "Data":
    """Products bought together (Amazon Photo): 7650 nodes, 745 binary words, undirected edges.

    Raises:
        DataError: the file is missing.
    """
    if fake:
        return fake_graph_like("photo")
    how = f"put amazon_electronics_photo.npz of the repository shchur/gnn-benchmark into $GLOCAL_DATA as {PHOTO}"
    path = _present(root, PHOTO, how)
    data_class()  # first, for its quiet import
    from torch_geometric.io import read_npz

    return read_npz(str(path))


def citation_domain(name: str, *, root: str | Path | None = None, fake: bool = False) -> "Data":
    """One of the citation networks ACM, DBLP, Citation of UDA-GCN: text files of features, labels and edges.

    `<name>_docs.txt` has one line of comma-separated features per paper, `<name>_labels.txt` one class per line,
    `<name>_edgelist.txt` one pair of node numbers per line.

    Args:
        name: one of `DOMAINS`.
        root: folder instead of `$GLOCAL_DATA`.
        fake: a random graph instead.

    Raises:
        DataError: a file is missing, or the three disagree on the number of papers.
    """
    if name not in DOMAINS:
        raise ValueError(f"domain must be one of {', '.join(DOMAINS)}, got {name!r}")
    if fake:
        return fake_graph_like("domain", name)
    how = f"put {name}_docs.txt, {name}_labels.txt and {name}_edgelist.txt (data of UDA-GCN) into its folder"
    files = [_present(root, f"UDAGCN/{name}/raw/{name}_{part}.txt", how) for part in ("docs", "labels", "edgelist")]
    x, y, edges = (np.loadtxt(file, delimiter=",", dtype=np.float32, ndmin=2) for file in files)
    ends = torch.from_numpy(edges.astype(np.int64)).T
    if len(x) != len(y) or (ends.numel() and int(ends.max()) >= len(x)):
        reason = f"read {len(x)} rows of features, {len(y)} labels and node numbers up to {int(ends.max())}"
        raise DataError(files[0].parent, reason, how, problem="corrupt")
    return data_class()(
        x=torch.from_numpy(x), edge_index=_distinct(ends, len(x)), y=torch.from_numpy(y[:, 0].astype(np.int64))
    )


def dated_citations(*, root: str | Path | None = None, fake: bool = False) -> tuple["Data", Int[Tensor, " n"]]:
    """ogbn-arxiv and the year of every paper, from the CSV files of the Open Graph Benchmark; edges stay directed.

    Raises:
        DataError: a file is missing.
    """
    if fake:
        data = fake_graph_like("arxiv")
        return data, 2009 + torch.arange(len(data.y)) % 12
    how = f"unpack arxiv.zip of the Open Graph Benchmark such that its folder raw becomes $GLOCAL_DATA/{ARXIV}"
    names = ("node-feat", "node-label", "node_year", "edge")
    files = [_present(root, f"{ARXIV}/{name}.csv.gz", how) for name in names]
    import pandas as pd

    x, y, years, edges = (torch.from_numpy(pd.read_csv(file, header=None).to_numpy(copy=True)) for file in files)
    data = data_class()(x=x.float(), edge_index=_distinct(edges.T.long(), len(x)), y=y[:, 0].long())
    return data, years[:, 0].long()


def _distinct(ends: Int[Tensor, "2 e"], n_nodes: int) -> Int[Tensor, "2 _"]:
    """Entries without loops, each once."""
    codes = (ends[0] * n_nodes + ends[1])[ends[0] != ends[1]].unique()
    return torch.stack([codes // n_nodes, codes % n_nodes])
