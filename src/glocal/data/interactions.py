"""Implicit feedback with published splits, as text lists: a user, then that user's items."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from glocal.data.entry import Entry
from glocal.data.errors import DataError
from glocal.data.fakes import fake_interactions
from glocal.data.roots import data_root
from glocal.data.types import InteractionData

FORMAT = "one line per user, 'user item item ...', whole numbers from 0 separated by blanks"


@dataclass(frozen=True)
class InteractionSet:
    """A published split: what a complete copy contains.

    Args:
        name: folder under the data root, with `train.txt` and `test.txt`.
        n_users: number of users.
        n_items: number of items.
        n_train: number of pairs in `train.txt`.
        n_test: number of pairs in `test.txt`.
        origin: where to get the files, in words.
        exact: whether a copy must have exactly these numbers of pairs.
    """

    name: str
    n_users: int
    n_items: int
    n_train: int
    n_test: int
    origin: str
    exact: bool = True

    @property
    def how_to_get(self) -> str:
        """Instruction that names the files, their format and their origin."""
        return f"put train.txt and test.txt of {self.origin} into $GLOCAL_DATA/{self.name}/ ({FORMAT})"


LIGHTGCN = "the data folder of the LightGCN repository (kuandeng/LightGCN on GitHub)"
ULTRAGCN = "the data folder of the UltraGCN repository (xue-pai/UltraGCN on GitHub)"
INTERACTION_SETS = (
    InteractionSet("gowalla", 29_858, 40_981, 810_128, 217_242, LIGHTGCN),
    InteractionSet("yelp2018", 31_668, 38_048, 1_237_259, 324_147, LIGHTGCN),
    InteractionSet("amazon-books", 52_643, 91_599, 2_380_730, 603_378, f"{LIGHTGCN}, there amazon-book,"),
    # 995,154 pairs in all; how they are divided is not published, hence not enforced
    InteractionSet("ml-1m", 6_022, 3_043, 796_123, 199_031, ULTRAGCN, exact=False),
)


def load_interactions(spec: InteractionSet, *, root: str | Path | None = None) -> InteractionData:
    """A published train/test split of user-item pairs.

    Args:
        spec: which split.
        root: folder that contains the folder `spec.name`; `$GLOCAL_DATA` by default.

    Raises:
        DataError: a file is missing, malformed or incomplete.
    """
    folder = data_root(root) / spec.name
    parts = {}
    for part, expected in (("train", spec.n_train), ("test", spec.n_test)):
        path = folder / f"{part}.txt"
        pairs = read_interactions(path, how_to_get=spec.how_to_get)
        for column, what, limit in ((0, "user", spec.n_users), (1, "item", spec.n_items)):
            largest = int(pairs[:, column].max())
            if largest >= limit:
                reason = f"{what} {largest} is out of range, {spec.name} has {limit} {what}s"
                raise DataError(path, reason, spec.how_to_get, problem="corrupt")
        if spec.exact and len(pairs) != expected:
            reason = f"expected {expected} pairs, found {len(pairs)}: the file is truncated or another version"
            raise DataError(path, reason, spec.how_to_get, problem="corrupt")
        parts[part] = pairs
    return InteractionData(**parts, n_users=spec.n_users, n_items=spec.n_items)


def read_interactions(path: Path, *, how_to_get: str) -> Int[Tensor, "n 2"]:
    """The pairs (user, item) of one text list, in the order of the file; users without items are allowed.

    Raises:
        DataError: the file is missing, empty, or a line does not consist of whole numbers.
    """
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        raise DataError(path, "the file does not exist", how_to_get) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, f"the file cannot be read ({error})", how_to_get, problem="corrupt") from None
    rows = [line.split() for line in lines]
    counts = np.array([max(len(row) - 1, 0) for row in rows], dtype=np.int64)
    if not counts.sum():
        raise DataError(path, "the file contains no pairs", how_to_get, problem="corrupt")
    bad = next((k for k, row in enumerate(rows) if not all(word.isdigit() for word in row)), None)
    if bad is not None:
        reason = f"line {bad + 1} must be {FORMAT}, got {lines[bad][:40]!r}"
        raise DataError(path, reason, how_to_get, problem="corrupt")
    users = np.array([row[0] for row in rows if row], dtype=np.int64)
    items = np.array([word for row in rows for word in row[1:]], dtype=np.int64)
    pairs = np.stack([np.repeat(users, [c for c, row in zip(counts, rows, strict=True) if row]), items], axis=1)
    return torch.from_numpy(pairs)


def _entry(spec: InteractionSet, summary: str, licence: str) -> Entry:
    fake = partial(
        fake_interactions,
        spec.name,
        n_train=spec.n_train,
        n_test=spec.n_test,
        n_users=spec.n_users,
        n_items=spec.n_items,
    )
    return Entry(
        name=spec.name,
        summary=summary,
        kind="interactions",
        n=f"{spec.n_train + spec.n_test} pairs, {spec.n_users} users, {spec.n_items} items",
        licence=licence,
        source=f"$GLOCAL_DATA/{spec.name}, from {spec.origin.split(' (')[0]}",
        loader=partial(_load_spec, spec),
        fake=lambda: fake(),
        local_files=(f"{spec.name}/train.txt", f"{spec.name}/test.txt"),
        how_to_get=spec.how_to_get,
        is_embedded=False,
    )


def _load_spec(spec: InteractionSet, /, root: str | Path | None = None) -> InteractionData:
    return load_interactions(spec, root=root)


_SUMMARIES = {
    "gowalla": ("check-ins of Gowalla, 10-core, LightGCN's split", "SNAP: no formal licence stated"),
    "yelp2018": (
        "businesses rated in the Yelp challenge 2018, LightGCN's split",
        "Yelp data set terms: academic use",
    ),
    "amazon-books": ("books reviewed at Amazon, LightGCN's split", "no formal licence stated; research use"),
    "ml-1m": (
        "MovieLens 1M as implicit feedback, UltraGCN's split",
        "GroupLens terms: research use, no redistribution or commercial use without permission",
    ),
}
ENTRIES = tuple(_entry(spec, *_SUMMARIES[spec.name]) for spec in INTERACTION_SETS)
