"""The error that every loader raises when a file is missing or corrupt."""

from pathlib import Path
from typing import Literal

Problem = Literal["missing", "corrupt"]


class DataError(RuntimeError):
    """A data file is missing or corrupt; the message names the file, the reason and the repair.

    Args:
        what: the file or folder concerned, or what was to be loaded.
        reason: what is wrong with it.
        repair: the command that repairs it, or where to get the file.
        problem: `"missing"` or `"corrupt"`.
    """

    def __init__(self, what: str | Path, reason: str, repair: str, *, problem: Problem = "missing") -> None:
        super().__init__(f"{what}: {reason}. To repair: {repair}")
        self.what = str(what)
        self.reason = reason
        self.repair = repair
        self.problem = problem
