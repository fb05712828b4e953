"""Importing PyTorch Geometric late: it takes seconds, and only graph data sets need it."""

import warnings
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch_geometric.data


@cache
def data_class() -> "type[torch_geometric.data.Data]":
    """`torch_geometric.data.Data`."""
    with warnings.catch_warnings():
        # its modules call torch.jit.script while they are imported, and tqdm misses widgets in a notebook
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*IProgress not found.*")
        from torch_geometric.data import Data
    return Data
