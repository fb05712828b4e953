"""Results that are slow to compute, kept on disk under a hash of everything they depend on."""

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from glocal.data.roots import cache_root


def content_hash(*parts: bytes | str | Tensor) -> str:
    """SHA-256 over texts, bytes and tensors (values, shape and type), in order."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            array = part.detach().cpu().contiguous().numpy()
            head = f"tensor {array.dtype} {array.shape}".encode()
            pieces = (head, array.tobytes())
        else:
            data = part.encode() if isinstance(part, str) else part
            pieces = (f"bytes {len(data)}".encode(), data)
        for piece in pieces:
            digest.update(piece)
    return digest.hexdigest()


def cached_tensor(
    key: str, compute: Callable[[], Float[Tensor, "..."]], *, cache_dir: str | Path | None = None
) -> Float[Tensor, "..."]:
    """The tensor stored under `key`, computed and stored if it is absent or damaged.

    A file holds the SHA-256 of its content, and appears under its name only when it is complete. A cache that
    cannot be written is no error: the result is computed again next time.

    Args:
        key: hash of everything the result depends on, see `content_hash`.
        compute: computes the result.
        cache_dir: folder instead of `$GLOCAL_CACHE` or `~/.cache/glocal`.
    """
    path = cache_root(cache_dir) / "features" / f"{key}.tensor"
    stored = _read(path)
    if stored is not None:
        return stored
    result = compute().cpu()
    with contextlib.suppress(OSError):
        _write(path, result)
    return result


def _read(path: Path) -> Tensor | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        return None
    return torch.from_numpy(np.load(io.BytesIO(data[32:]), allow_pickle=False))


def _write(path: Path, tensor: Tensor) -> None:
    buffer = io.BytesIO()
    np.save(buffer, tensor.numpy(), allow_pickle=False)
    data = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(hashlib.sha256(data).digest() + data)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
