"""What competes with LeBeD: confidence scores, distances of features; and how a score is judged against the error."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
from torch import Tensor

from glocal.graphs.lebed import Path, Reference, at_epoch, stop_epochs

THRESHOLDS = (0.7, 0.8, 0.9)
CONFIDENCE_SCORES = (
    "confidence",
    "entropy",
    "ATC, confidence",
    "ATC, entropy",
    *(f"threshold {t:g}" for t in THRESHOLDS),
)


def atc_threshold(certainty: Float[Tensor, " n"], is_correct: Bool[Tensor, " n"]) -> float:
    """The threshold below which lies a share of validation nodes equal to the validation error.

    Average thresholded confidence (Garg et al., ICLR 2022): the share of test nodes below it estimates their error.

    Args:
        certainty: a score of the validation nodes that grows with certainty.
        is_correct: whether they are classified correctly.
    """
    ordered = certainty.sort().values
    n_errors = int((~is_correct).sum())
    if n_errors == 0:
        return -float("inf")
    if n_errors == len(ordered):
        return float("inf")
    return float((ordered[n_errors - 1] + ordered[n_errors]) / 2)


def confidence_scores(
    test: Reference,
    is_node: Bool[Tensor, "b n"],
    val: Reference,
    is_val_node: Bool[Tensor, "1 m"],
    val_correct: Bool[Tensor, "1 m"],
) -> dict[str, Float[np.ndarray, " b"]]:
    r"""Estimates of the error from class probabilities alone; larger means worse.

    One minus the mean confidence, the mean entropy, ATC with confidence and with negative entropy, and the share of
    nodes whose confidence lies below a fixed threshold. Only ATC uses the labelled validation graph.

    Args:
        test: of the test graphs.
        is_node: their nodes.
        val: of the validation graph.
        is_val_node: its nodes.
        val_correct: whether these are classified correctly.
    """
    count = is_node.sum(1)

    def share_below(certainty: Tensor, threshold: float) -> Tensor:
        return ((certainty < threshold) & is_node).sum(1) / count

    scores = {"confidence": 1 - test.confidence.sum(1) / count, "entropy": test.entropy.sum(1) / count}
    for name, sign in (("confidence", 1), ("entropy", -1)):
        certainty = sign * getattr(val, name)[is_val_node]
        threshold = atc_threshold(certainty, val_correct[is_val_node])
        scores[f"ATC, {name}"] = share_below(sign * getattr(test, name), threshold)
    for threshold in THRESHOLDS:
        scores[f"threshold {threshold:g}"] = share_below(test.confidence, threshold)
    return {name: score.cpu().double().numpy() for name, score in scores.items()}


def other_scores(
    path: Path,
    ref: Reference,
    stop: Int[Tensor, " b"],
    training_mean: Float[Tensor, " c"],
    *,
    first: int = 5,
) -> dict[str, Float[np.ndarray, " b"]]:
    r"""Relatives of LeBeD's score from the same re-training, and an oracle; larger means worse.

    The fixed number of epochs, the stop where the pseudo-label loss reaches that of the model, the way from
    $\theta_0$, the disagreement of the re-trained model with the pseudo-labels, $D_{ref}$ without any re-training, and
    the distance of mean embeddings to the training graph, whose statistics are not available online (the oracle).

    Args:
        path: the re-training.
        ref: of the test graphs.
        stop: LeBeD's stopping epochs.
        training_mean: mean embedding of the training graph.
        first: $q_{min}$ of the stop by the pseudo-label loss.
    """
    excess = (path.loss - ref.loss[:, None]).clamp_min(0)  # zero as soon as the loss is as low as the model's own
    by_loss = stop_epochs(excess, 1e-12, first=first)
    scores = {
        "fixed epochs": path.distance[:, -1],
        "stop by loss": at_epoch(path.distance, by_loss),
        "way from start": at_epoch(path.moved, stop),
        "disagreement": 1 - at_epoch(path.agreement, stop),
        "no re-training": ref.structural,
        "mean embedding (oracle)": (ref.mean_embedding - training_mean).norm(dim=1),
    }
    return {name: score.cpu().double().numpy() for name, score in scores.items()}


def true_errors(ref: Reference, labels: Int[Tensor, "b n"], is_node: Bool[Tensor, "b n"]) -> Float[np.ndarray, " b"]:
    """Share of misclassified nodes of each graph: the quantity to be predicted, from labels nobody has online."""
    wrong = ((ref.predictions != labels) & is_node).sum(1) / is_node.sum(1)
    return wrong.cpu().double().numpy()


def pearson(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Linear correlation; zero if one of the two is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 1e-12 else 0.0


def spearman(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    r"""Rank correlation $\rho$, ties with mean ranks; zero if one of the two is constant."""
    return pearson(rankdata(a), rankdata(b))


def r_squared(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Explained variance of the linear regression of one on the other; it ignores the sign of the slope."""
    return pearson(a, b) ** 2


def partial_spearman(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], given: Float[np.ndarray, " n"]) -> float:
    r"""Rank correlation of `a` and `b` after the ranks of `given` have been regressed out of both."""
    ab, ac, bc = spearman(a, b), spearman(a, given), spearman(b, given)
    return (ab - ac * bc) / max(float(np.sqrt((1 - ac**2) * (1 - bc**2))), 1e-12)


def merged(refs: list[Reference]) -> Reference:
    """References of several batches of graphs as one; shorter rows are padded as absent nodes are."""
    n = max(ref.predictions.shape[1] for ref in refs)
    empty = {"predictions": -1, "confidence": 0, "entropy": 0}
    parts = {}
    for name in Reference.__dataclass_fields__:
        values = [getattr(ref, name) for ref in refs]
        if name in empty:
            values = [torch.nn.functional.pad(v, (0, n - v.shape[1]), value=empty[name]) for v in values]
        parts[name] = torch.cat(values)
    return Reference(**parts)
