"""Search of the gradient-trained rivals' settings on a tuning stream that shares nothing with the experiments."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glocal.seeding import torch_generator
from glocal.supervision.anytime import Learner, run_stream
from glocal.supervision.continual import Stream
from glocal.supervision.gacil_baselines import gradient_rival

Samples = tuple[Float[Tensor, "... d"], Int[Tensor, " ..."]]  # features and labels
# Tried around the settings stored in `gacil_baselines.TUNED` when the data are others.
GRID: dict[str, dict[str, list[Any]]] = {
    "fine-tuning": {"lr": [0.001, 0.003, 0.01, 0.03]},
    "LwF": {"lr": [0.001, 0.003, 0.01, 0.03], "distill_weight": [0.3, 1.0]},
    "EWC++": {"lr": [0.001, 0.003, 0.01, 0.03], "spring": [100.0, 1000.0]},
    "ER": {"lr": [0.001, 0.003, 0.01, 0.03, 0.1], "replay_batch": [64, 192]},
    "balanced ER": {"lr": [0.001, 0.003, 0.01, 0.03, 0.1], "replay_batch": [64, 192]},
    "hidden ER": {"lr": [0.001, 0.003, 0.01], "replay_batch": [64, 192]},
}


def grid_search(
    make: Callable[..., Learner],
    grid: Mapping[str, Sequence[Any]],
    stream: Stream,
    train: tuple[Float[Tensor, "n d"], Int[Tensor, " n"]],
    val: tuple[Float[Tensor, "m d"], Int[Tensor, " m"]],
    **run_settings: Any,
) -> list[tuple[float, dict[str, Any]]]:
    r"""Run a learner with every setting of a grid on one tuning stream; best $A_\mathrm{AUC}$ first.

    Args:
        make: builds the learner from one setting of the grid, given as keywords.
        grid: values to try, by name.
        stream: the tuning stream; use another seed and class order than in the experiments.
        train: training samples of that stream.
        val: held-out *training* samples; the test set stays out of tuning.
        run_settings: passed to `run_stream`.
    """
    results = []
    for values in itertools.product(*grid.values()):
        setting = dict(zip(grid, values, strict=True))
        record = run_stream(make(**setting), stream, train, val, **run_settings)
        results.append((record.a_auc, setting))
    return sorted(results, key=lambda pair: -pair[0])


def tune_rivals(
    buffered: tuple[Samples, Samples],
    raw: tuple[Samples, Samples],
    stream: Stream,
    n_classes: int,
    *,
    memory_size: int,
    hidden: int = 512,
    seed: int,
    device: str | torch.device = "cpu",
    max_settings: int | None = None,
    **run_settings: Any,
) -> dict[str, dict[str, Any]]:
    """Best setting of every family of `GRID` on one tuning stream, by `grid_search`.

    Args:
        buffered: training and validation samples with buffer features.
        raw: the same samples with backbone features, for the head that learns its own hidden layer.
        stream: over the training samples; another class order than in the experiments.
        n_classes: number of classes.
        memory_size: memory of the replay families.
        hidden: width of the hidden layer.
        seed: of the learners' own randomness.
        device: where the heads live.
        max_settings: try only so many values of each setting (rehearsals).
        run_settings: passed to `run_stream`.
    """
    best = {}
    for name, grid in GRID.items():
        train, val = raw if name == "hidden ER" else buffered
        make = partial(
            gradient_rival,
            name,
            train[0].shape[1],
            n_classes,
            memory_size=memory_size if name.endswith("ER") else 0,
            hidden=hidden,
            device=device,
        )
        tried = {key: values[:max_settings] for key, values in grid.items()}
        results = grid_search(
            lambda make=make, name=name, **setting: make(generator=torch_generator(seed, "tune", name), **setting),
            tried,
            stream,
            train,
            val,
            **run_settings,
        )
        best[name] = results[0][1]
    return best
