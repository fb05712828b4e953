"""How many images a network needs: risk against n, and exponents of the sample complexity (Lahoti et al. 2024)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from glocal.seeding import torch_generator
from glocal.theory.dsd import Trained, init_weights, train
from glocal.theory.dsd_data import PatchData, moving_signal, random_signals
from glocal.theory.dsd_theory import population_risk
from glocal.theory.dsd_two_step import two_step


@dataclass(frozen=True)
class Task:
    """Independent instances of the moving-signal task: signals, training images (nested in n), validation, test."""

    sigma: float
    signal: Float[Tensor, "runs d"]
    training: PatchData
    validation: PatchData
    test: PatchData

    def take(self, index: Int[Tensor, " some"]) -> "Task":
        """Some of the runs."""
        parts = (part.take(index) for part in (self.training, self.validation, self.test))
        return Task(self.sigma, self.signal[index], *parts)

    def risk(self, networks: Trained) -> Float[Tensor, "runs models"]:
        """Exact risk of CNN and LCN; of an FCN the mean over the test images."""
        if networks.kind == "fcn":
            return networks.risk(self.test)
        return population_risk(networks, self.signal, self.training.x.shape[2], self.sigma)


def draw_task(
    runs: int, k: int, d: int, sigma: float, *, n: int, n_val: int, n_test: int, seed: int, device: str = "cpu"
) -> Task:
    """A task with `n` training images per run; generators are named after size and purpose."""

    def stream(part: str) -> torch.Generator:
        return torch_generator(seed, part, k, d, device=device)

    signal = random_signals(runs, d, generator=stream("signal"))
    sizes = {"training": n, "validation": n_val, "test": n_test}
    parts = {part: moving_signal(signal, m, k, sigma, generator=stream(part)) for part, m in sizes.items()}
    return Task(sigma, signal, **parts)


@dataclass(frozen=True)
class RiskCurve:
    """Risks of one kind of network at increasing numbers of training images, each the mean of a few runs.

    After the end of its search a row is nan, and `networks` no longer has its runs; the others keep their order.
    """

    n: Float[np.ndarray, " sizes"]
    risks: Float[np.ndarray, "seeds sizes"]
    networks: tuple[Trained, ...]
    signal: Float[Tensor, "runs d"]


def risk_curve(
    kind: str,
    task: Task,
    n_grid: Sequence[int],
    *,
    until: float = 0.0,
    pool: int = 1,
    lrs: list[float] | None = None,
    init_scale: float = 0.02,
    seed: int = 0,
    **options: Any,
) -> RiskCurve:
    r"""Search for the sample complexity: train at growing $n$ until the risk is at most `until`.

    Args:
        kind: kind of network.
        task: the task; training images are prefixes of `task.training`.
        n_grid: increasing numbers of images, at most those of the task.
        until: threshold that ends the search.
        pool: neighbouring runs whose mean risk is one measurement, with a search of its own.
        lrs: learning rates, of which each run keeps the best by validation risk; None for two-step descent.
        init_scale: see `init_weights`.
        seed: for the start.
        options: options of `train` or `two_step`.

    Raises:
        ValueError: if the grid asks for more images than the task has, or `pool` does not divide its runs.
    """
    if n_grid[-1] > len(task.training):
        raise ValueError(f"n_grid must stay within the {len(task.training)} images of the task, got {n_grid[-1]}")
    runs, _, k, d = task.training.x.shape
    if runs % pool:
        raise ValueError(f"pool must divide the {runs} runs of the task, got {pool}")
    if lrs is not None:
        stream = torch_generator(seed, "init", kind, k, d, device=task.signal.device)
        init = init_weights(kind, runs, len(lrs), k, d, scale=init_scale, generator=stream)
    signal = task.signal
    rows, risks, kept = torch.arange(runs, device=task.signal.device), [], []
    for n in n_grid:
        data = task.training.first(n)
        if lrs is None:
            found = two_step(kind, data, task.validation, **options)
        else:
            found = train(kind, init[rows], data, task.validation, lrs=lrs, **options)
        kept.append(found.best())
        present = task.risk(kept[-1])[:, 0].double().cpu().numpy().reshape(-1, pool).mean(1)
        risks.append(np.full(runs // pool, np.nan))
        risks[-1][rows.cpu().numpy()[::pool] // pool] = present
        searching = torch.tensor(np.flatnonzero((present > until).repeat(pool)), device=rows.device)
        if len(searching) == 0:
            break
        if len(searching) < len(rows):
            rows, task = rows[searching], task.take(searching)
    return RiskCurve(np.array(n_grid[: len(kept)], dtype=float), np.stack(risks, 1), tuple(kept), signal)


def sample_complexity(
    n: Float[np.ndarray, " sizes"], risks: Float[np.ndarray, "seeds sizes"], delta: float
) -> Float[np.ndarray, " seeds"]:
    r"""$n^*$: where the risk first falls to $\delta$, by linear interpolation of the risk in $\log n$.

    Args:
        n: increasing numbers of training images.
        risks: test risk of each seed.
        delta: threshold.

    Returns:
        One $n^*$ per seed; the smallest size if the risk is below the threshold there, infinity if it never is.
    """
    below = risks <= delta
    first = below.argmax(1)
    found = np.full(len(risks), np.inf)
    for seed in np.flatnonzero(below.any(1)):
        j = first[seed]
        if j == 0:
            found[seed] = n[0]
            continue
        high, low = risks[seed, j - 1], risks[seed, j]
        share = (high - delta) / (high - low)
        found[seed] = math.exp(math.log(n[j - 1]) + share * (math.log(n[j]) - math.log(n[j - 1])))
    return found


def exponent(
    sizes: Float[np.ndarray, " points"], n_star: Float[np.ndarray, "seeds points"]
) -> Float[np.ndarray, " seeds"]:
    r"""Slope of $\log n^*$ against the logarithm of a size, by least squares, one per seed.

    Raises:
        ValueError: if some $n^*$ is infinite.
    """
    if not np.isfinite(n_star).all():
        raise ValueError("exponent needs finite sample complexities, got a censored one: enlarge the grid of n")
    x = np.log(sizes) - np.log(sizes).mean()
    return np.log(n_star) @ x / (x @ x)
