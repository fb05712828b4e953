"""How much of an experiment is carried out: all of it, or a rehearsal of two steps on fake data."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeVar, get_args

Scale = Literal["small", "full", "rehearsal"]
SCALES: tuple[str, ...] = get_args(Scale)
T = TypeVar("T")


@dataclass(frozen=True)
class Budget:
    """Limits that a chapter applies to every loop, so that its full-scale path can be rehearsed on a CPU.

    At the scales `small` and `full` every method returns its argument unchanged. In a rehearsal training
    loops stop after two steps, batches shrink to at most four examples, evaluation sees one batch and one
    repetition of the experiment is enough; models and code paths stay those of the full run.

    Args:
        scale: `"small"`, `"full"` or `"rehearsal"`.
    """

    scale: str = "small"

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {self.scale!r}")

    @property
    def is_rehearsal(self) -> bool:
        """Whether this is a rehearsal; pass it to `glocal.data.load(..., fake=...)`."""
        return self.scale == "rehearsal"

    def steps(self, n: int) -> int:
        """Number of optimiser steps, epochs or rounds to take instead of `n`: at most two in a rehearsal."""
        return min(n, 2) if self.is_rehearsal else n

    def batch_size(self, n: int) -> int:
        """Batch size to use instead of `n`: at most four in a rehearsal."""
        return min(n, 4) if self.is_rehearsal else n

    def repeats(self, n: int) -> int:
        """Independent repetitions (seeds) to run instead of `n`: one in a rehearsal."""
        return min(n, 1) if self.is_rehearsal else n

    def batches(self, batches: Iterable[T]) -> Iterator[T]:
        """The evaluation batches to use: all of them, or only the first one in a rehearsal."""
        return islice(batches, 1) if self.is_rehearsal else iter(batches)
