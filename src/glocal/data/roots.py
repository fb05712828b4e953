"""Folders outside the package: full data under `$GLOCAL_DATA`, cached features under `$GLOCAL_CACHE`."""

import os
from pathlib import Path

from glocal.data.errors import DataError


def data_root(root: str | Path | None = None) -> Path:
    """The folder of the full-scale data sets: `root`, else `$GLOCAL_DATA`.

    Raises:
        DataError: neither is given, or the folder does not exist.
    """
    chosen = root if root is not None else os.environ.get("GLOCAL_DATA", "")
    if not str(chosen):
        raise DataError(
            "$GLOCAL_DATA",
            "full-scale data sets need a folder, and neither root= nor the environment variable is set",
            "export GLOCAL_DATA=/path/to/a/folder/for/data",
        )
    path = Path(chosen).expanduser()
    if not path.is_dir():
        raise DataError(path, "the folder of full-scale data does not exist", f"mkdir -p {path}")
    return path


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """The folder of derived files that may be deleted: `cache_dir`, `$GLOCAL_CACHE` or `~/.cache/glocal`."""
    return Path(cache_dir or os.environ.get("GLOCAL_CACHE") or "~/.cache/glocal").expanduser()
