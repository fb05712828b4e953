r"""Training with local augmentation: new draws in every epoch, supervised loss plus consistency over the draws."""

import time
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glocal.graphs.lagnn_baselines import Source
from glocal.graphs.lagnn_networks import StackedBackbone
from glocal.graphs.node_classification import seeded


@dataclass(frozen=True)
class Parts:
    """Labels and node indices of the runs: one row per run."""

    y: Int[Tensor, " n"]
    train: Int[Tensor, "r m"]
    val: Int[Tensor, "r v"]
    test: Int[Tensor, "r t"]


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
    probs: Float[Tensor, "n r k"]
    seconds: float
    model: StackedBackbone


def sharpened(probs: Float[Tensor, "... k"], temperature: float) -> Float[Tensor, "... k"]:
    r"""$q = p^{1/T} / \sum p^{1/T}$: unchanged for $T = 1$, one-hot for $T \to 0$; no gradient passes.

    Raises:
        ValueError: for a temperature that is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    probs = probs.detach()
    powers = (probs / probs.amax(-1, keepdim=True)).pow(1 / temperature)
    return powers / powers.sum(-1, keepdim=True)


def consistency_loss(probs: Float[Tensor, "s n r k"], temperature: float = 0.5) -> Float[Tensor, " r"]:
    r"""$\frac1{Sn}\sum_{s,i}\lVert p_{s,i} - q_i\rVert_2^2$ of each run, $q$ the sharpened mean over the $S$ samples.

    Source: the definition of the consistency loss; all nodes enter, labels do not.
    """
    targets = sharpened(probs.mean(0), temperature)
    return (probs - targets).square().sum(-1).mean((0, 1))


def accuracies(probs: Float[Tensor, "n r k"], y: Int[Tensor, " n"], nodes: Int[Tensor, "r m"]) -> Float[Tensor, " r"]:
    """Share of correct predictions of each run on its own nodes."""
    return (_of_runs(probs, nodes).argmax(-1) == y[nodes]).double().mean(1)


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

    Every epoch makes `samples` forward passes, each with new draws of all generated inputs. The sum of the runs' losses
    has separate gradients, and Adam works entry by entry, so runs do not influence each other. Validation uses one more
    draw per evaluated epoch; weights AND that draw are kept, and the test reads exactly these predictions once.

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
    start = time.process_time()
    runs = len(parts.train)
    best_loss = torch.full((runs,), float("inf"), device=x.device)
    best_epoch = torch.zeros(runs, dtype=torch.long, device=x.device)
    best, best_probs = network.twin(), torch.empty(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, weight_decay=weight_decay, fused=True)

    def log_probs(model: StackedBackbone) -> Tensor:
        drawn = [source(generator) for _ in range(model.n_inputs - 1)] if source is not None else []
        logits = model([x, *drawn])
        shifted: Tensor = logits - logits.detach().amax(
            -1, keepdim=True
        )  # log-softmax; torch's is slow for few classes
        return shifted - shifted.exp().sum(-1, keepdim=True).log()

    with seeded(generator):
        for epoch in range(1, epochs + 1):
            network.train()
            optimizer.zero_grad()
            passes = [log_probs(network) for _ in range(samples)]
            objective = torch.stack([_nll(p, parts.y, parts.train) for p in passes]).mean(0)
            if consistency:
                objective = objective + consistency * consistency_loss(torch.stack(passes).exp(), temperature)
            objective.sum().backward()
            optimizer.step()
            if epoch % eval_every and epoch < epochs:
                continue
            with torch.no_grad():
                outputs = log_probs(network.eval())
                loss = _nll(outputs, parts.y, parts.val)
                is_better = loss < best_loss
                best_probs = outputs.exp() if epoch <= eval_every else best_probs
                best_probs = torch.where(is_better[None, :, None], outputs.exp(), best_probs)
                best_epoch[is_better] = epoch
                best_loss = torch.minimum(loss, best_loss)
                best.copy_runs(is_better, network)
        seconds = time.process_time() - start
        test = fresh = accuracies(best_probs, parts.y, parts.test)
        if fresh_draws:
            with torch.no_grad():
                draws = [accuracies(log_probs(best.eval()), parts.y, parts.test) for _ in range(fresh_draws)]
            fresh = torch.stack(draws).mean(0)
    return AugmentedFit(best_loss, test, fresh, best_epoch, best_probs, seconds, best)


def _of_runs(values: Float[Tensor, "n r k"], nodes: Int[Tensor, "r m"]) -> Float[Tensor, "r m k"]:
    return values[nodes, torch.arange(len(nodes), device=nodes.device)[:, None]]


def _nll(log_probs: Float[Tensor, "n r k"], y: Int[Tensor, " n"], nodes: Int[Tensor, "r m"]) -> Float[Tensor, " r"]:
    """Cross-entropy of each run on its own nodes."""
    return -_of_runs(log_probs, nodes).gather(2, y[nodes][..., None]).mean((1, 2))
