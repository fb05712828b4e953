"""The whole experiment for one kind of network: pre-train, re-train on every test graph, collect all scores."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int

from glocal.graphs import lebed
from glocal.graphs.lebed_baselines import confidence_scores, merged, other_scores, r_squared, spearman, true_errors
from glocal.graphs.lebed_graphs import batch_graphs, padded_labels
from glocal.graphs.lebed_networks import Network, initial_network, stacked
from glocal.seeding import torch_generator

if TYPE_CHECKING:
    from torch_geometric.data import Data


@dataclass(frozen=True)
class Shifted:
    """A test graph and how it came about.

    Args:
        graph: PyG data with `x`, `edge_index`, `y`, `neg_edge_index`; `y` is read for the true error only.
        domain: where its nodes come from.
        shift: the perturbation, `"none"` for none.
        strength: of the perturbation, zero for none.
    """

    graph: "Data"
    domain: str
    shift: str = "none"
    strength: float = 0.0


@dataclass(frozen=True)
class EvaluationTask:
    """A training graph, a labelled validation graph, its shifted copies, and the test graphs."""

    train: "Data"
    val: "Data"
    val_copies: list[Shifted]
    tests: list[Shifted]
    n_classes: int


@dataclass(frozen=True)
class Settings:
    """Hyperparameters of the networks and of their two trainings (defaults: small scale)."""

    n_hidden: int = 32
    width: int = 16
    lr: float = 0.005
    weight_decay: float = 5e-4
    epochs: int = 150
    lr_again: float = 0.005
    weight_decay_again: float = 5e-4
    epochs_again: int = 80
    first: int = 5
    graphs_at_once: int = 64
    device: str = "cpu"


@dataclass(frozen=True)
class Rerun:
    """Re-training on a list of graphs.

    Args:
        path: recorded at every epoch.
        ref: what the trained model says.
        errors: true errors of the model, one per graph.
        sizes: numbers of nodes.
        confidence: the scores from class probabilities, by name.
    """

    path: lebed.Path
    ref: lebed.Reference
    errors: Float[np.ndarray, " b"]
    sizes: Float[np.ndarray, " b"]
    confidence: dict[str, Float[np.ndarray, " b"]]


@dataclass(frozen=True)
class Trained:
    r"""One network with what is kept for its online evaluation.

    Args:
        start: $\theta_0$.
        network: $\theta^*$.
        val_accuracy: of $\theta^*$.
        task: its graphs.
        settings: as given.
        training_mean: mean embedding of the training graph, for the oracle only.
    """

    start: Network
    network: Network
    val_accuracy: float
    task: EvaluationTask
    settings: Settings
    training_mean: Float[torch.Tensor, " c"] = field(repr=False)


def pretrained(kind: str, tasks: list[EvaluationTask], settings: Settings, *, seed: int) -> list[Trained]:
    """One network per task, all trained side by side; initial weights follow from `seed` and the index of the task."""
    device, first = settings.device, tasks[0]
    starts = [
        initial_network(
            kind,
            first.train.num_features,
            n_hidden=settings.n_hidden,
            width=settings.width,
            n_classes=first.n_classes,
            generator=torch_generator(seed, "initial", kind, run, device=device),
        )
        for run in range(len(tasks))
    ]
    graphs = {part: [getattr(task, part) for task in tasks] for part in ("train", "val")}
    batches = {part: batch_graphs(graphs[part], device) for part in graphs}
    labels = {part: padded_labels([graph.y for graph in graphs[part]], device) for part in graphs}
    network, accuracies = lebed.pretrain(
        stacked(starts),
        batches["train"],
        labels["train"],
        batches["val"],
        labels["val"],
        epochs=settings.epochs,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
    )
    means = lebed.reference(network, batches["train"]).mean_embedding
    return [
        Trained(start, network.copy(run), float(accuracies[run]), task, settings, means[run])
        for run, (start, task) in enumerate(zip(starts, tasks, strict=True))
    ]


def rerun(
    trained: Trained,
    shifted: list[Shifted],
    *,
    start: Network | None = None,
    on_path: Callable[[Network, Network], None] | None = None,
) -> Rerun:
    r"""Re-train on every graph and record the path.

    Args:
        trained: the network under evaluation.
        shifted: the graphs.
        start: other initial weights than $\theta_0$, for the ablation.
        on_path: called with the re-trained and the trained copies after each batch of graphs, for inspection.
    """
    settings, graphs = trained.settings, [item.graph for item in shifted]
    order = sorted(range(len(graphs)), key=lambda index: len(graphs[index].y))
    val = batch_graphs([trained.task.val], settings.device)
    val_ref = lebed.reference(trained.network, val)
    val_correct = val_ref.predictions == trained.task.val.y.to(settings.device)
    paths, refs, errors, confidence = [], [], [], []
    for begin in range(0, len(order), settings.graphs_at_once):
        some = [graphs[index] for index in order[begin : begin + settings.graphs_at_once]]
        batch, copies = batch_graphs(some, settings.device), trained.network.copies(len(some))
        ref = lebed.reference(copies, batch)
        path, after = lebed.retrain(
            (start or trained.start).copies(len(some)),
            copies,
            batch,
            ref.predictions,
            epochs=settings.epochs_again,
            lr=settings.lr_again,
            weight_decay=settings.weight_decay_again,
        )
        if on_path is not None:
            on_path(after, copies)
        paths.append(path)
        refs.append(ref)
        errors.append(true_errors(ref, padded_labels([g.y for g in some], settings.device), batch.is_node))
        confidence.append(confidence_scores(ref, batch.is_node, val_ref, val.is_node, val_correct))
    back = np.argsort(order)
    index = torch.as_tensor(back, device=settings.device)
    path, ref = lebed.concatenated(paths), merged(refs)
    return Rerun(
        lebed.Path(*(getattr(path, name)[index] for name in lebed.Path.__dataclass_fields__)),
        lebed.Reference(**{name: getattr(ref, name)[index] for name in lebed.Reference.__dataclass_fields__}),
        np.concatenate(errors)[back],
        np.array([len(graph.y) for graph in graphs], dtype=float),
        {name: np.concatenate([part[name] for part in confidence])[back] for name in confidence[0]},
    )


def scores_of(
    trained: Trained, result: Rerun, *, margin_rate: float, margin: float = 0.0
) -> tuple[dict[str, Float[np.ndarray, " b"]], Int[np.ndarray, " b"]]:
    """LeBeD's score, its relatives and the confidence scores by name; and LeBeD's stopping epochs."""
    first = trained.settings.first
    score, stop = lebed.lebed_score(result.path, result.ref, margin_rate=margin_rate, margin=margin, first=first)
    scores = {"LeBeD": score.cpu().double().numpy()}
    scores |= other_scores(result.path, result.ref, stop, trained.training_mean, first=first)
    return scores | result.confidence, stop.cpu().numpy()


def best_margin(trained: list[Trained], results: list[Rerun], rates: list[float]) -> float:
    """The relative margin whose scores rank the shifted validation copies best, on average over runs; no test graph."""
    mean_rho = []
    for rate in rates:
        scores = [scores_of(t, r, margin_rate=rate)[0]["LeBeD"] for t, r in zip(trained, results, strict=True)]
        mean_rho.append(np.mean([spearman(s, r.errors) for s, r in zip(scores, results, strict=True)]))
    return rates[int(np.argmax(np.round(mean_rho, 6)))]


def correlations(
    scores: dict[str, Float[np.ndarray, " b"]], errors: Float[np.ndarray, " b"]
) -> dict[str, tuple[float, float]]:
    r"""Spearman's $\rho$ and $R^2$ of every score with the true error."""
    return {name: (spearman(score, errors), r_squared(score, errors)) for name, score in scores.items()}


def with_learning_rate(trained: Trained, lr: float) -> Trained:
    """The same network, to be re-trained at another rate."""
    return replace(trained, settings=replace(trained.settings, lr_again=lr))
