r"""Binary tables in bags: the data of the chapter, the two public tables of the paper, and the AUC.

n rows, d features, r draws.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from glocal.data import load
from glocal.data.errors import DataError
from glocal.data.roots import data_root
from glocal.data.sampling import random_bags
from glocal.data.types import TableData
from glocal.seeding import torch_generator
from glocal.supervision.llp_bp_networks import Bags

POSITIVE = {"penbased": (5, 6, 7, 8, 9), "optdigits": (5, 6, 7, 8, 9), "magic": (0,), "spambase": (1,)}
UCI = ("adult", "bank")
ADULT_NUMERIC = (0, 2, 4, 10, 11, 12)
BANK_NUMERIC = (0, 5, 9, 11, 12, 13, 14)
FAKE_ROWS = 64
FAKE_FEATURES = {"adult": 105, "bank": 51}


@dataclass(frozen=True)
class BaggedTask:
    """One problem per draw: training and validation instances in bags, test instances with labels.

    Args:
        train: training bags.
        val: validation bags of the same size.
        x_test: test features.
        y_test: test labels, 0 or 1.
    """

    train: Bags
    val: Bags
    x_test: Float[Tensor, "r n d"]
    y_test: Float[Tensor, "r n"]


def binary_table(name: str, *, root: str | Path | None = None, fake: bool = False) -> TableData:
    """A table with labels 0 and 1.

    Args:
        name: `penbased` or `optdigits` (digits 5 to 9 against 0 to 4), `magic` (gamma against hadron), `spambase`, or
            `adult` and `bank`, read from files of the UCI repository.
        root: folder instead of `$GLOCAL_DATA` for the last two.
        fake: random stand-in with the same columns and few rows.

    Raises:
        ValueError: for an unknown name.
        DataError: if a file is missing or not what it should be.
    """
    if name in POSITIVE:
        data = load(name, fake=fake)
        positive = torch.isin(data.labels, torch.tensor(POSITIVE[name]))
        return TableData(data.x, positive.long(), ("negative", "positive"), data.feature_names)
    if name not in UCI:
        raise ValueError(f"binary tables are {', '.join((*POSITIVE, *UCI))}, got {name!r}")
    if fake:
        x = torch.randn(FAKE_ROWS, FAKE_FEATURES[name], generator=torch_generator(0, "fake", name))
        return TableData(x, torch.arange(FAKE_ROWS) % 2, ("negative", "positive"))
    return _adult(data_root(root) / "adult") if name == "adult" else _bank(data_root(root) / "bank")


def _lines(path: Path, source: str) -> list[str]:
    if not path.is_file():
        raise DataError(path, "the file does not exist", f"unpack {source} of the UCI repository into {path.parent}")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _adult(folder: Path) -> TableData:
    """Census income: `adult.data` and `adult.test`, comma-separated, 14 columns and the class; `?` is a category."""
    lines = [line for name in ("adult.data", "adult.test") for line in _lines(folder / name, "Adult (id 2)")]
    rows = [line.replace(" ", "").rstrip(".").split(",") for line in lines if not line.startswith("|")]
    return _table(rows, 15, ADULT_NUMERIC, ("<=50K", ">50K"), folder)


def _bank(folder: Path) -> TableData:
    """Bank marketing: `bank-full.csv`, separated by semicolons, a header, 16 columns and the class."""
    lines = _lines(folder / "bank-full.csv", "Bank Marketing (id 222)")
    rows = list(csv.reader(lines[1:], delimiter=";"))
    return _table(rows, 17, BANK_NUMERIC, ("no", "yes"), folder)


def _table(
    rows: Sequence[Sequence[str]], n_columns: int, numeric: Sequence[int], classes: tuple[str, str], folder: Path
) -> TableData:
    """Numbers as they are, one indicator per category of the other columns; the last column is the class."""
    wrong = [row for row in rows if len(row) != n_columns or row[-1] not in classes]
    if wrong or not rows:
        reason = (
            f"expected {n_columns} columns ending in {' or '.join(classes)}, read {wrong[0] if wrong else 'no rows'}"
        )
        raise DataError(folder, reason, "unpack the archive of the UCI repository again", problem="corrupt")
    columns = np.array(rows).T
    parts, names = [], []
    for j, column in enumerate(columns[:-1]):
        if j in numeric:
            parts.append(column.astype(np.float32)[:, None])
            names.append(f"x{j}")
        else:
            categories = np.unique(column)
            parts.append((column[:, None] == categories).astype(np.float32))
            names += [f"x{j}={category}" for category in categories]
    labels = torch.from_numpy((columns[-1] == classes[1]).astype(np.int64))
    return TableData(torch.from_numpy(np.concatenate(parts, axis=1)), labels, classes, tuple(names))


def bagged_task(
    data: TableData, bag_size: int, n_train: int, n_val: int, n_test: int, *, generators: Sequence[torch.Generator]
) -> BaggedTask:
    """Random rows in random disjoint bags; features have mean 0 and variance 1 over each draw's training instances.

    Incomplete bags are dropped. Draws with generators in equal states share their rows whatever the bag size.

    Args:
        data: the table.
        bag_size: instances per bag.
        n_train: training instances.
        n_val: validation instances.
        n_test: test instances.
        generators: one per draw.

    Raises:
        ValueError: if the table has too few rows.
    """
    needed = n_train + n_val + n_test
    if len(data) < needed:
        raise ValueError(f"n_train, n_val and n_test need {needed} rows together, got a table of {len(data)}")
    drawn = []
    for generator in generators:
        order = torch.randperm(len(data), generator=generator)[:needed]
        train, val, test = order.split([n_train, n_val, n_test])
        mean, std = data.x[train].mean(0), data.x[train].std(0)
        x, y = (data.x - mean) / std.clamp_min(1e-6), data.labels.float()
        bags = [part[random_bags(len(part), bag_size, generator=generator)] for part in (train, val)]
        drawn.append([tensor[rows] for rows in (*bags, test) for tensor in (x.clamp(-10, 10), y)])
    x_train, y_train, x_val, y_val, x_test, y_test = (torch.stack(part) for part in zip(*drawn, strict=True))
    return BaggedTask(Bags(x_train, y_train), Bags(x_val, y_val), x_test, y_test)


def to_device(task: BaggedTask, device: str) -> BaggedTask:
    """The task on another device."""
    train, val = (Bags(part.x.to(device), part.y.to(device)) for part in (task.train, task.val))
    return BaggedTask(train, val, task.x_test.to(device), task.y_test.to(device))


def auc(scores: Float[Tensor, "*s"], labels: Tensor) -> float:
    """Probability that a positive scores higher than a negative, ties counting half.

    Raises:
        ValueError: if a class is absent.
    """
    scores, positive = scores.flatten(), labels.flatten() > 0.5
    low, high = scores[~positive].sort().values, scores[positive]
    if not len(low) or not len(high):
        raise ValueError("the AUC needs instances of both classes, got one class only")
    below, not_above = torch.searchsorted(low, high), torch.searchsorted(low, high, right=True)
    return float((below + not_above).double().mean() / (2 * len(low)))


def aucs(scores: Float[Tensor, " r *_"], labels: Float[Tensor, " r *_"]) -> list[float]:
    """The AUC of each draw, in per cent."""
    return [100 * auc(one, truth) for one, truth in zip(scores, labels, strict=True)]
