"""Regression tables of the UCI repository for the full-scale runs, read from `$GLOCAL_DATA/uci/<name>/`."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from glocal.data.errors import DataError
from glocal.data.roots import data_root
from glocal.seeding import torch_generator


@dataclass(frozen=True)
class UCITable:
    """Where a table lies and how it is laid out.

    Args:
        file: path below `uci/<name>/`.
        n: rows.
        d: features that are used.
        target: column of the target, counted from the right if negative.
        drop: columns that are neither feature nor target.
        delimiter: between columns; None for any white space.
        header: lines before the data.
        how_to_get: what to download, and what to do with it.
        archive: from where.
    """

    file: str
    n: int
    d: int
    target: int = -1
    drop: tuple[int, ...] = ()
    delimiter: str | None = None
    header: int = 0
    how_to_get: str = ""
    archive: str = "https://archive.ics.uci.edu"


UCI_TABLES = {
    "boston": UCITable("housing.data", 506, 13, how_to_get="the file housing.data"),
    "concrete": UCITable(
        "Concrete_Data.csv", 1030, 8, delimiter=",", header=1, how_to_get="Concrete_Data.xls, saved as CSV"
    ),
    # the second output, cooling load, is dropped
    "energy": UCITable(
        "ENB2012_data.csv", 768, 8, -2, (-1,), delimiter=",", header=1, how_to_get="ENB2012_data.xlsx, saved as CSV"
    ),
    "kin8nm": UCITable(
        "dataset_2175_kin8nm.csv",
        8192,
        8,
        delimiter=",",
        header=1,
        how_to_get="dataset_2175_kin8nm.csv (data/get_csv/3626)",
        archive="https://www.openml.org",
    ),
    # columns 8 and 11 are constant, the last column is the second output
    "naval": UCITable("data.txt", 11934, 14, -2, (8, 11, -1), how_to_get="data.txt from 'UCI CBM Dataset.zip'"),
    "power": UCITable(
        "Folds5x2_pp.csv", 9568, 4, delimiter=",", header=1, how_to_get="Folds5x2_pp.xlsx from CCPP.zip, saved as CSV"
    ),
    "protein": UCITable("CASP.csv", 45730, 9, 0, delimiter=",", header=1, how_to_get="the file CASP.csv"),
    "wine_red": UCITable(
        "winequality-red.csv", 1599, 11, delimiter=";", header=1, how_to_get="the file winequality-red.csv"
    ),
    "wine_white": UCITable(
        "winequality-white.csv", 4898, 11, delimiter=";", header=1, how_to_get="the file winequality-white.csv"
    ),
    "yacht": UCITable("yacht_hydrodynamics.data", 308, 6, how_to_get="the file yacht_hydrodynamics.data"),
}


def load_uci(
    name: str, *, fake: bool = False, root: str | Path | None = None
) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
    """Features and target of a UCI regression table, as they are in the file.

    Args:
        name: a name in `UCI_TABLES`, or `"diabetes"`, which comes with scikit-learn.
        fake: random numbers with as many features, 64 rows, instead of the file.
        root: folder of full-scale data instead of `$GLOCAL_DATA`.

    Raises:
        ValueError: for an unknown name.
        DataError: the file is missing, or does not hold the table.
    """
    if name != "diabetes" and name not in UCI_TABLES:
        raise ValueError(f"the table must be 'diabetes' or one of {', '.join(UCI_TABLES)}, got {name!r}")
    if fake:
        d = 10 if name == "diabetes" else UCI_TABLES[name].d
        x = torch.randn(64, d, generator=torch_generator(0, "fake", name), dtype=torch.float64)
        return x, x[:, 0] + 0.1 * x[:, 1]
    if name == "diabetes":
        from sklearn.datasets import load_diabetes

        bunch = load_diabetes()
        return torch.from_numpy(bunch.data), torch.from_numpy(bunch.target)
    table = UCI_TABLES[name]
    path = data_root(root) / "uci" / name / table.file
    repair = f"get {table.how_to_get} from {table.archive} and put it at {path}"
    if not path.is_file():
        raise DataError(path, f"the UCI table {name!r} is not there", repair)
    rows = _read(path, table, repair)
    target = table.target % rows.shape[1]
    unused = {column % rows.shape[1] for column in (*table.drop, target)}
    features = [column for column in range(rows.shape[1]) if column not in unused]
    if rows.shape[0] != table.n or len(features) != table.d:
        reason = f"expected {table.n} rows and {table.d} features, read {rows.shape[0]} and {len(features)}"
        raise DataError(path, reason, repair, problem="corrupt")
    return torch.from_numpy(rows[:, features]), torch.from_numpy(rows[:, target].copy())


def _read(path: Path, table: UCITable, repair: str) -> np.ndarray:
    """The numbers of a file; blank lines and a byte-order mark are ignored."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()[table.header :]
    text = "\n".join(line for line in lines if line.strip())
    try:
        return np.loadtxt(io.StringIO(text), delimiter=table.delimiter, ndmin=2)
    except ValueError as error:
        raise DataError(path, f"the file is not a table of numbers ({error})", repair, problem="corrupt") from error


@dataclass(frozen=True)
class TableSplit:
    """A random split of a table, standardised by its training part; `y_scale` undoes it for the target."""

    x: Float[Tensor, "n d"]
    y: Float[Tensor, "n 1"]
    x_test: Float[Tensor, "m d"]
    y_test: Float[Tensor, "m 1"]
    y_scale: float

    def to(self, device: str | torch.device) -> "TableSplit":
        """The same split on `device`."""
        return TableSplit(
            self.x.to(device), self.y.to(device), self.x_test.to(device), self.y_test.to(device), self.y_scale
        )


def table_split(
    x: Float[Tensor, "rows d"], y: Float[Tensor, " rows"], share: float, *, generator: torch.Generator
) -> TableSplit:
    """Random training and test rows; `share` of the rows are for training, 0.9 in the usual protocol.

    Raises:
        ValueError: if `share` is not in (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, got {share}")
    order = torch.randperm(len(x), generator=generator)
    n = int(share * len(x))
    x, y = x[order], y[order, None]
    spread, scale = x[:n].std(0, correction=0), float(y[:n].std(correction=0))
    x = (x - x[:n].mean(0)) / torch.where(spread > 0, spread, 1.0)
    y = (y - y[:n].mean()) / scale
    return TableSplit(x[:n], y[:n], x[n:], y[n:], scale)
