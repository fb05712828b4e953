"""What the registry knows about a data set."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from glocal.data.files import DataFile

Kind = Literal["images", "glyphs", "scenes", "photographs", "table", "ratings", "interactions", "graph", "text"]


@dataclass(frozen=True)
class Entry:
    """A data set: how to load it and what a catalogue says about it.

    Args:
        name: the name given to `load`.
        summary: one line on the content.
        kind: what is loaded.
        n: size in words, e.g. `"5000 images"`.
        licence: terms of use, or that none are stated.
        source: where the data come from.
        loader: function with keyword-only options; those are the options of `load`.
        fake: same options, returns a random stand-in of the same shapes without disk or network.
        files: files of wheels and of this package that the loader reads, with their checksums.
        local_files: files expected under the data root, for sets that are not embedded.
        how_to_get: where to get the `local_files`, in words or as a command.
        is_embedded: whether the set is available after `make`, without a further download.
    """

    name: str
    summary: str
    kind: Kind
    n: str
    licence: str
    source: str
    loader: Callable[..., Any]
    fake: Callable[..., Any]
    files: tuple[DataFile, ...] = ()
    local_files: tuple[str, ...] = ()
    how_to_get: str = ""
    is_embedded: bool = True


@dataclass(frozen=True)
class Status:
    """Whether a data set can be loaded now.

    Args:
        state: `ready`, `missing` or `corrupt`.
        detail: where the data are, or what is wrong.
        repair: command or instruction that repairs it; empty when ready.
    """

    state: Literal["ready", "missing", "corrupt"]
    detail: str
    repair: str = ""
