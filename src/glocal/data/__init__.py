"""Data sets of the book: `load` by name, typed results, checked files.

    >>> from glocal.data import load
    >>> digits = load("digits")

`glocal.data.registry` has the catalogue, `glocal.data.splits` the splits.
"""

from glocal.data.errors import DataError
from glocal.data.registry import load
from glocal.data.splits import node_split, stratified_split

__all__ = ["DataError", "load", "node_split", "stratified_split"]
