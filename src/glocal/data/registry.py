"""The one registry of data sets: loading by name, what there is, and whether it is ready."""

import difflib
import inspect
from functools import cache
from pathlib import Path
from typing import Any

from glocal.data import docgraph, glyphs, hubs, interactions, photos, planetoid, ratings, scenes, small_images, tables
from glocal.data.entry import Entry, Status
from glocal.data.errors import DataError
from glocal.data.files import check_all
from glocal.data.roots import data_root

_MODULES = (small_images, glyphs, docgraph, scenes, photos, tables, ratings, interactions, planetoid, hubs)


@cache
def entries() -> dict[str, Entry]:
    """All data sets by name, in the order of the catalogue: embedded ones first."""
    found = [entry for module in _MODULES for entry in module.ENTRIES]
    ordered = sorted(found, key=lambda entry: not entry.is_embedded)
    return {entry.name: entry for entry in ordered}


def entry(name: str) -> Entry:
    """What the registry knows about one data set.

    Raises:
        ValueError: there is no such data set; the message lists the valid names, close matches first.
    """
    known = entries()
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise ValueError(f"name must be a registered data set, got {name!r}: {hint}Valid names: {', '.join(known)}")


def load(name: str, *, fake: bool = False, root: str | Path | None = None, **options: Any) -> Any:
    """Load a data set by name.

    Args:
        name: a name of `entries()`.
        fake: return a random stand-in with the same shapes, without touching disk or network.
        root: folder of full-scale data instead of `$GLOCAL_DATA`; embedded sets do not take one.
        options: options of the data set, see `options_of(name)`.

    Returns:
        `ImageData`, `TableData`, `RatingData`, `InteractionData`, `Splits[...]`, ... depending on the set.

    Raises:
        ValueError: unknown name or option; the message lists the valid ones.
        DataError: a file is missing or corrupt; the message names it, the reason and the repair.
    """
    found = entry(name)
    valid = options_of(name)
    for option in options:
        if option not in valid:
            listed = ", ".join(valid) or "none"
            raise ValueError(f"options of {name!r} must be among: {listed}; got {option!r}")
    if root is not None and found.is_embedded:
        raise ValueError(f"root must be None for the embedded data set {name!r}, got {str(root)!r}: leave it out")
    if fake:
        return found.fake(**options)
    if not found.is_embedded:
        return found.loader(root=root, **options)
    return found.loader(**options)


def options_of(name: str) -> tuple[str, ...]:
    """Names of the options that `load(name, ...)` takes besides `fake` and `root`."""
    return tuple(option for option in inspect.signature(entry(name).loader).parameters if option != "root")


def status(name: str, *, root: str | Path | None = None) -> Status:
    """Whether a data set can be loaded now, and what to do if not. Reads files for their checksums.

    Raises:
        ValueError: unknown name.
    """
    found = entry(name)
    try:
        check_all(found.files)
        if found.is_embedded:
            return Status("ready", found.source)
        base = data_root(root)
    except DataError as error:
        return Status(error.problem, f"{error.what}: {error.reason}", error.repair)
    for relative in found.local_files:
        if not (base / relative).exists():
            return Status("missing", f"{base / relative}: the file does not exist", found.how_to_get)
    return Status("ready", str(base))


def checksums(name: str) -> dict[str, str]:
    """SHA-256 of each file behind a data set, by path within site-packages or this package, for provenance.

    Empty for generated sets, which are determined by the code, and for full-scale sets.
    """
    return {file.path: file.sha256 for file in entry(name).files}
