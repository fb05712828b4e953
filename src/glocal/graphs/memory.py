"""What training holds in memory: the bytes that automatic differentiation keeps for the backward pass."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def saved_bytes(compute: Callable[[], Any], excluded: Iterable[Tensor] = ()) -> int:
    """Bytes held for the backward pass of `compute()` at the moment when it would start, every storage counted once.

    Sparse tensors are operators that exist anyway and are not counted.

    Args:
        compute: computes the loss.
        excluded: tensors that exist anyway, such as parameters.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in excluded}
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                held[storage.data_ptr()] = tensor  # keeps it alive, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        compute()
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())
