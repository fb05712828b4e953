"""`docgraph`: the citation graph of the scientific Python documentation, close to Cora in size and statistics."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from glocal.data.entry import Entry
from glocal.data.errors import DataError
from glocal.data.fakes import fake_graph
from glocal.data.files import PackageFile, verified
from glocal.data.pyg import data_class

if TYPE_CHECKING:
    import torch_geometric.data

FILE = PackageFile(
    "data/docgraph.npz",
    "c22602b0f8666c18ad172aa4421d513ae78e51e7797a0314b4d2f98973e1670a",
    "git checkout -- src/glocal/data/docgraph.npz",
)
N_NODES, N_EDGES, N_CLASSES, N_WORDS = 2650, 4079, 12, 600


def load_docgraph(*, n_words: int = N_WORDS) -> "torch_geometric.data.Data":
    """Documented public functions and classes of numpy, scipy, scikit-learn, scikit-image, networkx and torch.

    Stored arrays, built by `scripts/build_docgraph.py`, so results do not move with the installed packages.

    Args:
        n_words: keep the most frequent words only, 1 to 600.

    Returns:
        PyG data with `x` (nodes x words, 0 or 1), `edge_index` (both directions, no loops), `y` (package area)
        and the tuples `names` (one per node), `class_names`, `words` (by falling frequency), `versions`.

    Raises:
        DataError: the stored file is missing or corrupt.
    """
    _check_words(n_words)
    path = verified(FILE)
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
    except (OSError, ValueError) as error:
        raise DataError(path, f"the file cannot be read ({error})", FILE.reinstall, problem="corrupt") from error
    words = _lines(arrays["words"])[:n_words]
    pairs = torch.from_numpy(arrays["edges"].astype(np.int64)).T
    return data_class()(
        x=torch.from_numpy(np.unpackbits(arrays["x_bits"], axis=1, count=n_words)).float(),
        edge_index=torch.cat([pairs, pairs.flip(0)], dim=1),
        y=torch.from_numpy(arrays["y"].astype(np.int64)),
        names=_lines(arrays["names"]),
        class_names=_lines(arrays["classes"]),
        words=words,
        versions=_lines(arrays["versions"]),
    )


def fake_docgraph(*, n_words: int = N_WORDS) -> "torch_geometric.data.Data":
    """A random graph with the numbers of nodes, edges, words and classes of `docgraph`."""
    _check_words(n_words)
    data = fake_graph("docgraph", n_nodes=N_NODES, n_features=n_words, n_edges=2 * N_EDGES, n_classes=N_CLASSES)
    data.names = tuple(f"node {k}" for k in range(N_NODES))
    data.class_names = tuple(f"class {k}" for k in range(N_CLASSES))
    data.words = tuple(f"word {k}" for k in range(n_words))
    data.versions = ()
    return data


def _check_words(n_words: int) -> None:
    if not 1 <= n_words <= N_WORDS:
        raise ValueError(f"n_words must be between 1 and {N_WORDS}, got {n_words}")


def _lines(stored: np.ndarray) -> tuple[str, ...]:
    return tuple(stored.tobytes().decode("ascii").split("\n"))


ENTRIES = (
    Entry(
        name="docgraph",
        summary="citations between pages of the scientific Python documentation, words as features",
        kind="graph",
        n=f"{N_NODES} nodes, {N_EDGES} edges, {N_CLASSES} classes, {N_WORDS} words",
        licence="drawn from BSD-3-Clause documentation (torch: BSD style); word counts and names only",
        source="stored in the package, built by scripts/build_docgraph.py",
        loader=load_docgraph,
        fake=fake_docgraph,
        files=(FILE,),
    ),
)
