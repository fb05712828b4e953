"""Random generators derived from one seed and a name, so that no result depends on the order of calls."""

import hashlib

import numpy as np
import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """Seed of a named purpose: a hash of `seed` and `names`, in [0, 2**63).

    Two purposes never share a stream, and adding a new one leaves the others as they were.

    Args:
        seed: the chapter's seed.
        names: what the stream is for, e.g. `("split", 3)`.
    """
    text = "/".join([str(int(seed)), *(str(name) for name in names)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def torch_generator(seed: int, *names: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A `torch.Generator` on `device` for the purpose `names` (see `derive_seed`)."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *names))


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """A `numpy.random.Generator` for the purpose `names` (see `derive_seed`)."""
    return np.random.default_rng(derive_seed(seed, *names))
