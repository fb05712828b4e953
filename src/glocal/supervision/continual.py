r"""Class-incremental streams: who arrives when. Shared by the chapters on continual learning; n samples, k classes.

A stream is an order of the training set, cut into tasks; `glocal.supervision.anytime` feeds it to a learner.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Stream:
    """An order of arrival of a training set.

    Args:
        index: which sample arrives at each moment.
        task: the task of each moment, never decreasing.
        n_tasks: number of tasks; some may be empty.
        home: the home task of each class.
        is_disjoint: whether a class lives in its home task only.
        is_spread: whether the sample at each moment was torn from its class's home task.
    """

    index: Int[Tensor, " n"]
    task: Int[Tensor, " n"]
    n_tasks: int
    home: Int[Tensor, " k"]
    is_disjoint: Bool[Tensor, " k"]
    is_spread: Bool[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.index)

    def batches(self, batch_size: int) -> Iterator[tuple[int, Int[Tensor, " b"]]]:
        """Pairs (task, indices of a batch) in order of arrival; a batch never crosses the border of a task."""
        for task in range(self.n_tasks):
            for part in self.index[self.task == task].split(batch_size):
                if len(part):
                    yield task, part

    def task_classes(self, labels: Int[Tensor, " n_all"]) -> Bool[Tensor, "tasks k"]:
        """Which classes occur in which task."""
        present = torch.zeros(self.n_tasks, len(self.home), dtype=torch.bool, device=labels.device)
        present[self.task, labels[self.index]] = True
        return present


def si_blurry_stream(
    labels: Int[Tensor, " n"],
    n_tasks: int,
    *,
    r_disjoint: float = 0.5,
    r_blurry: float = 0.1,
    generator: torch.Generator,
) -> Stream:
    r"""Stochastic blurry stream (Si-Blurry): old and new classes in one task, in amounts nobody announced.

    A random share $r_D$ of the classes is disjoint: all samples of such a class arrive in its home task. The others
    are blurry: a share $r_B$ of the samples of each, rounded, is spread uniformly over all tasks (home included).
    Home tasks are drawn at random, one class per task first, so that task sizes vary but no task is empty while
    classes last. The order within a task is random.

    Args:
        labels: class of every training sample, on the CPU.
        n_tasks: number of tasks.
        r_disjoint: $r_D$ in [0, 1]; 1 is classical class-incremental learning with random task sizes.
        r_blurry: $r_B$ in [0, 1]; 1 scatters the blurry classes over all tasks.
        generator: source of all the draws.

    Raises:
        ValueError: for shares outside [0, 1] or less than one task.

    Source: Moon et al., "Online class incremental learning on stochastic blurry task boundary via mask and visual
    prompt tuning", ICCV 2023, Section 3; the constants 0.5, 0.1 and 5 tasks are that protocol's customary ones.
    """
    for name, share in (("r_disjoint", r_disjoint), ("r_blurry", r_blurry)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be a share in [0, 1], got {share}: 0.1 means ten per cent")
    if n_tasks < 1:
        raise ValueError(f"n_tasks must be at least 1, got {n_tasks}")
    k, n = int(labels.max()) + 1, len(labels)
    order = torch.randperm(k, generator=generator)
    is_disjoint = torch.zeros(k, dtype=torch.bool)
    is_disjoint[order[: round(r_disjoint * k)]] = True
    home = torch.randint(n_tasks, (k,), generator=generator)
    seats = min(k, n_tasks)
    home[torch.randperm(k, generator=generator)[:seats]] = torch.randperm(n_tasks, generator=generator)[:seats]

    is_spread = _share_of_each_class(labels, r_blurry, generator) & ~is_disjoint[labels]
    anywhere = torch.randint(n_tasks, (n,), generator=generator)
    task = torch.where(is_spread, anywhere, home[labels])
    return _ordered(task, home, is_disjoint, is_spread, n_tasks, generator)


def class_incremental_stream(
    labels: Int[Tensor, " n"], n_base: int, n_phases: int, *, generator: torch.Generator
) -> Stream:
    """Classical protocol: a base task of `n_base` classes, then `n_phases` tasks of equally many new classes.

    Args:
        labels: class of every training sample, on the CPU.
        n_base: classes of the base task: those with the smallest indices, on which a backbone may have been
            trained ("B50" for 50 of 100 classes).
        n_phases: tasks after the base task; the remaining classes are dealt out in random order.
        generator: draws the order of the classes after the base and of the samples within a task.

    Raises:
        ValueError: if the phases cannot hold equally many classes.
    """
    k = int(labels.max()) + 1
    if n_phases < 1 or (k - n_base) % n_phases or k <= n_base:
        raise ValueError(
            f"{k - n_base} classes after a base of {n_base} cannot be dealt out equally to {n_phases} phases: "
            "choose a number of phases that divides it"
        )
    home = torch.zeros(k, dtype=torch.long)
    rest = n_base + torch.randperm(k - n_base, generator=generator)
    home[rest] = 1 + torch.arange(k - n_base) // ((k - n_base) // n_phases)
    nothing = torch.zeros(len(labels), dtype=torch.bool)
    return _ordered(home[labels], home, torch.ones(k, dtype=torch.bool), nothing, n_phases + 1, generator)


def concat_streams(first: Stream, second: Stream) -> Stream:
    """One stream after the other; the samples of the second are those that follow the first's in the training set.

    Args:
        first: over the training samples 0 to n - 1.
        second: over its own training samples, which the joint training set has at n and after.
    """
    return Stream(
        torch.cat([first.index, second.index + len(first)]),
        torch.cat([first.task, second.task + first.n_tasks]),
        first.n_tasks + second.n_tasks,
        first.home,
        first.is_disjoint & second.is_disjoint,
        torch.cat([first.is_spread, second.is_spread]),
    )


def _share_of_each_class(labels: Int[Tensor, " n"], share: float, generator: torch.Generator) -> Bool[Tensor, " n"]:
    """Mark `round(share * n_c)` random samples of each class c."""
    counts = torch.bincount(labels)
    chosen = (share * counts).round().long()
    return rank_within_class(labels, torch.rand(len(labels), generator=generator)) < chosen[labels]


def rank_within_class(labels: Int[Tensor, " n"], keys: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Position of each sample in its class when the class is sorted by `keys` (0 is the smallest key)."""
    by_key = keys.argsort(stable=True)
    order = by_key[labels[by_key].argsort(stable=True)]
    counts = torch.bincount(labels)
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    rank = torch.empty_like(labels)
    rank[order] = torch.arange(len(labels), device=labels.device) - starts
    return rank


def _ordered(
    task: Int[Tensor, " n"],
    home: Int[Tensor, " k"],
    is_disjoint: Bool[Tensor, " k"],
    is_spread: Bool[Tensor, " n"],
    n_tasks: int,
    generator: torch.Generator,
) -> Stream:
    """Sort samples by task, in random order within each."""
    shuffle = torch.randperm(len(task), generator=generator)
    index = shuffle[task[shuffle].argsort(stable=True)]
    return Stream(index, task[index], n_tasks, home, is_disjoint, is_spread[index])


def long_tail(
    labels: Int[Tensor, " n"], imbalance: float, total: int, *, generator: torch.Generator
) -> Int[Tensor, " m"]:
    r"""Indices of a long-tailed subset: class sizes fall geometrically by the factor `imbalance` from first to last.

    The class of rank $r$ (ranks are random) gets $n_r \propto \rho^{-r/(k-1)}$ samples, scaled to about `total`.

    Args:
        labels: class of every sample.
        imbalance: $\rho \ge 1$, largest class over smallest; 1 is balanced.
        total: wanted size of the subset, up to rounding.
        generator: draws the ranks of the classes and the samples.

    Raises:
        ValueError: if `imbalance` is below 1 or the largest class would need more samples than there are.
    """
    if imbalance < 1:
        raise ValueError(f"imbalance is largest class over smallest, at least 1, got {imbalance}")
    counts = torch.bincount(labels)
    k = len(counts)
    rank = torch.empty(k)
    rank[torch.randperm(k, generator=generator)] = torch.linspace(0, 1, k)
    sizes = imbalance**-rank
    sizes = (sizes * total / sizes.sum()).round().long().clamp(min=1)
    if (sizes > counts).any():
        worst = int((sizes - counts).argmax())
        raise ValueError(
            f"imbalance {imbalance:g} with {total} samples asks for {int(sizes[worst])} of a class that has "
            f"{int(counts[worst])}: lower `total`"
        )
    chosen = rank_within_class(labels, torch.rand(len(labels), generator=generator)) < sizes[labels]
    return chosen.nonzero().squeeze(1)
