r"""Training with local augmentation: new draws in every epoch, supervised loss plus consistency over the draws."""

import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from glocal.graphs.lagnn_baselines import Source
from glocal.graphs.lagnn_networks import StackedBackbone
from glocal.graphs.node_classification import seeded
from glocal.graphs.parts import Parts


@dataclass(frozen=True)
class AugmentedFit:
    """What a joint training gave, one entry per run; accuracies in [0, 1].

    Args:
        val_loss: lowest validation loss over the epochs, in nats.
        test: test accuracy at that epoch, with the draw that the validation saw.
        fresh: mean test accuracy of the same weights over new draws.
        epoch: the chosen epoch, from 1.
        probs: predictions for all nodes behind `test`.
        seconds: CPU seconds of the process for training and evaluation, all runs together.
        model: the networks at the chosen epochs.
    """

    val_loss: Float[Tensor, " r"]
    test: Float[Tensor, " r"]
    fresh: Float[Tensor, " r"]
    epoch: Int[Tensor, " r"]
    probs: Float[Tensor, "n k r"]
    seconds: float
    model: StackedBackbone


def sharpened(probs: Float[Tensor, "n k ..."], temperature: float) -> Float[Tensor, "n k ..."]:
    r"""$q = p^{1/T} / \sum p^{1/T}$: unchanged for $T = 1$, one-hot for $T \to 0$; no gradient passes.

    Raises:
        ValueError: for a temperature that is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    return (probs.detach().log() / temperature).softmax(1)


def consistency_loss(passes: list[Float[Tensor, "n k r"]], temperature: float = 0.5) -> Float[Tensor, " r"]:
    r"""$\frac1{Sn}\sum_{s,i}\lVert p_{s,i} - q_i\rVert_2^2$ of each run, $q$ the sharpened mean over the $S$ samples.

    Source: the definition of the consistency loss; all nodes enter, labels do not.
    """
    mean = passes[0].detach()
    for probs in passes[1:]:
        mean = mean + probs.detach()
    targets = sharpened(mean / len(passes), temperature)
    squares = [F.mse_loss(probs, targets, reduction="none").sum((0, 1)) for probs in passes]
    return torch.stack(squares).mean(0) / len(targets)


def accuracies(scores: Float[Tensor, "n k r"], y: Int[Tensor, " n"], nodes: Int[Tensor, "r m"]) -> Float[Tensor, " r"]:
    """Share of correct predictions of each run on its own nodes."""
    return (_of_runs(scores, nodes).argmax(1) == y[nodes]).double().mean(1)


def fit_augmented(
    network: StackedBackbone,
    x: Float[Tensor, "n f"],
    source: Source | None,
    parts: Parts,
    *,
    samples: int = 4,
    consistency: float = 1.0,
    temperature: float = 0.5,
    lr: float = 0.01,
    weight_decay: float = 5e-4,
    epochs: int = 100,
    eval_every: int = 1,
    fresh_draws: int = 0,
    generator: torch.Generator,
) -> AugmentedFit:
    r"""Train all runs on $\mathcal L_{sup} + \lambda\mathcal L_{con}$; each keeps its epoch of least validation loss.

    Every epoch makes `samples` forward passes (`StackedBackbone.passes`), each with new draws of all generated inputs.
    The sum of the runs' losses has separate gradients, and Adam works entry by entry, so runs do not influence each
    other. Validation uses one more draw per evaluated epoch; weights AND that draw are kept, and the test reads exactly
    these predictions once.

    Args:
        network: the runs; changed in place. The result holds the chosen weights.
        x: the real input, row-normalised.
        source: gives the generated inputs; may be None for a network with the real input only.
        parts: labels and splits.
        samples: $S$.
        consistency: $\lambda$.
        temperature: $T$ of the sharpening.
        lr: learning rate of Adam.
        weight_decay: $L_2$ penalty on all parameters.
        epochs: training steps.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
        fresh_draws: new draws behind `fresh`; 0 repeats `test`.
        generator: source of draws and dropout.

    Raises:
        ValueError: if there is no source for the generated inputs, or a count is below one.

    Source: the training loop of the official LA-GCN.
    """
    if source is None and network.n_inputs > 1:
        raise ValueError(f"source must be given for {network.n_inputs - 1} generated inputs, got None")
    if min(samples, epochs, eval_every) < 1:
        raise ValueError(f"samples, epochs and eval_every must be at least 1, got {samples}, {epochs}, {eval_every}")
    runs = len(parts.train)
    best_loss = torch.full((runs,), float("inf"), device=x.device)
    best_epoch = torch.zeros(runs, dtype=torch.long, device=x.device)
    best, best_logits, real = network.twin(), torch.empty(0), network.prepared(x)
    start = time.process_time()
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, weight_decay=weight_decay, fused=True)

    def inputs() -> list[Any]:
        drawn = [source(generator) for _ in range(network.n_inputs - 1)] if source is not None else []
        return [real, *drawn]

    with seeded(generator):
        for epoch in range(1, epochs + 1):
            network.train()
            optimizer.zero_grad()
            passes = [logits for _ in range(samples) for logits in network.passes(inputs())]
            objective = torch.stack([_nll(logits, parts.y, parts.train) for logits in passes]).mean(0)
            if consistency:
                probs = [logits.softmax(1) for logits in passes]
                objective = objective + consistency * consistency_loss(probs, temperature)
            objective.sum().backward()
            optimizer.step()
            if epoch % eval_every and epoch < epochs:
                continue
            with torch.no_grad():
                logits = network.eval()(inputs())
                loss = _nll(logits, parts.y, parts.val)
                is_better = loss < best_loss
                best_logits = torch.where(is_better, logits, best_logits) if epoch > eval_every else logits
                best_epoch[is_better] = epoch
                best_loss = torch.minimum(loss, best_loss)
                best.copy_runs(is_better, network)
        seconds = time.process_time() - start
        test = fresh = accuracies(best_logits, parts.y, parts.test)
        if fresh_draws:
            with torch.no_grad():
                draws = [accuracies(best.eval()(inputs()), parts.y, parts.test) for _ in range(fresh_draws)]
            fresh = torch.stack(draws).mean(0)
    return AugmentedFit(best_loss, test, fresh, best_epoch, best_logits.softmax(1), seconds, best)


def _of_runs(logits: Float[Tensor, "n k r"], nodes: Int[Tensor, "r m"]) -> Float[Tensor, "r k m"]:
    """Each run's logits of its own nodes."""
    return logits[nodes, :, torch.arange(len(nodes), device=nodes.device)[:, None]].transpose(1, 2)


def _nll(logits: Float[Tensor, "n k r"], y: Int[Tensor, " n"], nodes: Int[Tensor, "r m"]) -> Float[Tensor, " r"]:
    """Cross-entropy of each run on its own nodes."""
    return F.cross_entropy(_of_runs(logits, nodes), y[nodes], reduction="none").mean(1)
