"""The citation graphs Cora, CiteSeer and PubMed with their public split, from `$GLOCAL_DATA/Planetoid`."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from glocal.data.entry import Entry
from glocal.data.errors import DataError
from glocal.data.fakes import fake_graph
from glocal.data.pyg import data_class
from glocal.data.roots import data_root

if TYPE_CHECKING:
    import torch_geometric.data

PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")


@dataclass(frozen=True)
class PlanetoidSet:
    """One citation graph; `n_edges` counts both directions."""

    name: str
    folder: str
    n_nodes: int
    n_features: int
    n_edges: int
    class_names: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """The raw files, relative to the data root."""
        return tuple(f"Planetoid/{self.folder}/raw/ind.{self.name}.{part}" for part in PARTS)

    @property
    def how_to_get(self) -> str:
        """Where the raw files come from."""
        return (
            f"put the files ind.{self.name}.* of the folder data of kimiyoung/planetoid on GitHub "
            f"into $GLOCAL_DATA/Planetoid/{self.folder}/raw/"
        )


def _numbered(n: int) -> tuple[str, ...]:
    return tuple(f"class {k}" for k in range(n))


PLANETOID_SETS = (
    PlanetoidSet("cora", "Cora", 2708, 1433, 10_556, _numbered(7)),
    PlanetoidSet("citeseer", "CiteSeer", 3327, 3703, 9_104, _numbered(6)),
    PlanetoidSet("pubmed", "PubMed", 19_717, 500, 88_648, _numbered(3)),
)


def load_planetoid(spec: PlanetoidSet, /, *, root: str | Path | None = None) -> "torch_geometric.data.Data":
    """A citation graph: `x` (binary or tf-idf words), `edge_index` (both directions), `y` and public masks.

    Reads the raw files and writes nothing.

    Raises:
        DataError: a raw file is missing or damaged.
    """
    base = data_root(root)
    for relative in spec.files:
        if not (base / relative).is_file():
            raise DataError(base / relative, "the file does not exist", spec.how_to_get)
    folder = (base / spec.files[0]).parent
    data_class()  # first, for its quiet import
    from torch_geometric.io import read_planetoid_data

    try:
        data = read_planetoid_data(str(folder), spec.name)
    except Exception as error:  # unpickling a damaged file raises almost anything
        reason = f"a raw file is corrupt or truncated ({type(error).__name__}: {error})"
        raise DataError(folder, reason, spec.how_to_get, problem="corrupt") from error
    found = (data.num_nodes, data.num_features, data.num_edges)
    if found != (spec.n_nodes, spec.n_features, spec.n_edges):
        expected = f"{spec.n_nodes} nodes, {spec.n_features} features and {spec.n_edges} edges"
        raise DataError(folder, f"expected {expected}, read {found}", spec.how_to_get, problem="corrupt")
    data.class_names = spec.class_names
    return data


def fake_planetoid(spec: PlanetoidSet, /) -> "torch_geometric.data.Data":
    """A random graph of the same size, with masks of the sizes of the public split."""
    data = fake_graph(
        spec.name,
        n_nodes=spec.n_nodes,
        n_features=spec.n_features,
        n_edges=spec.n_edges,
        n_classes=len(spec.class_names),
    )
    per_class = 20 * len(spec.class_names)
    masks = {
        "train_mask": (0, per_class),
        "val_mask": (per_class, per_class + 500),
        "test_mask": (-1000, None),
    }
    for name, (start, stop) in masks.items():
        mask = torch.zeros(spec.n_nodes, dtype=torch.bool)
        mask[start:stop] = True
        data[name] = mask
    data.class_names = spec.class_names
    return data


ENTRIES = tuple(
    Entry(
        name=spec.name,
        summary=f"citations between papers ({spec.folder}), words as features, public split",
        kind="graph",
        n=f"{spec.n_nodes} nodes, {spec.n_edges // 2} edges, {len(spec.class_names)} classes",
        licence="MIT (planetoid repository)" if spec.name == "cora" else "planetoid repository: MIT",
        source="$GLOCAL_DATA/Planetoid",
        loader=partial(load_planetoid, spec),
        fake=partial(fake_planetoid, spec),
        local_files=spec.files,
        how_to_get=spec.how_to_get,
        is_embedded=False,
    )
    for spec in PLANETOID_SETS
)
