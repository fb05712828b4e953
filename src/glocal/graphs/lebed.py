r"""LeBeD: the error of a graph network on an unlabelled graph, from re-training it there (Zheng et al., ICLR 2024).

The same architecture is trained from the same initial weights $\theta_0$ on the test graph with the model's own
predictions as labels, until its structural loss meets that of the model; the score is the distance of the weights.
"""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glocal.graphs.lebed_networks import GraphBatch, Network


@torch.no_grad()
def structural_loss(embeddings: Float[Tensor, "b n c"], graphs: GraphBatch) -> Float[Tensor, " b"]:
    r"""$D = \frac{1}{|E^+ \cup E^-|} \sum_{ij} \mathrm{BCE}\bigl(\sigma(\cos(z_i, z_j)), [ij \in E^+]\bigr)$.

    Cosines are the logits, without a temperature, so that $D$ lies between 0.31 and 1.31. It is measured, never
    minimised: no gradient.

    Args:
        embeddings: $z$, the output of the encoder.
        graphs: gives the edges $E^+$ and the non-edges $E^-$, drawn once per graph.
    """
    units = F.normalize(embeddings, dim=-1, eps=1e-8).flatten(0, 1)
    one, other = (units.index_select(0, ends) for ends in graphs.pairs)
    cosines = one.mul_(other) @ one.new_ones(one.shape[1])
    losses = F.softplus(torch.where(graphs.is_edge, -cosines, cosines)) * graphs.weight
    return losses.new_zeros(len(graphs)).index_add(0, graphs.owner, losses)


@dataclass(frozen=True)
class Reference:
    r"""What the trained model $\theta^*$ says about unlabelled graphs.

    Args:
        predictions: hard pseudo-labels $\hat y$; -1 where a graph has no node.
        confidence: largest class probability; zero where there is no node.
        entropy: of the class probabilities, in nats; zero where there is no node.
        structural: $D_{ref}$.
        loss: mean cross-entropy against the own pseudo-labels, in nats.
        mean_embedding: mean over the nodes.
    """

    predictions: Int[Tensor, "b n"]
    confidence: Float[Tensor, "b n"]
    entropy: Float[Tensor, "b n"]
    structural: Float[Tensor, " b"]
    loss: Float[Tensor, " b"]
    mean_embedding: Float[Tensor, "b c"]


@torch.no_grad()
def reference(trained: Network, graphs: GraphBatch) -> Reference:
    r"""Steps 1 and 2: pseudo-labels and $D_{ref}$ of the trained model in evaluation mode."""
    embeddings = trained.embeddings(graphs, is_training=False)
    log_probs = trained.logits(embeddings).log_softmax(-1)
    log_confidence, predictions = log_probs.max(-1)
    mask, count = graphs.is_node, graphs.is_node.sum(1)
    return Reference(
        predictions=predictions.where(mask, -1),
        confidence=log_confidence.exp() * mask,
        entropy=-(log_probs.exp() * log_probs).sum(-1) * mask,
        structural=structural_loss(embeddings, graphs),
        loss=-(log_confidence * mask).sum(1) / count,
        mean_embedding=(embeddings * mask[..., None]).sum(1) / count[:, None],
    )


@dataclass(frozen=True)
class Path:
    r"""Re-training on $b$ graphs, recorded at every epoch, so that any stopping rule can be read off.

    Args:
        structural: $D^q$, from the forward pass of epoch $q$ in training mode.
        distance: $\lVert \theta^{q+1} - \theta^* \rVert_2$, after the step of epoch $q$.
        moved: $\lVert \theta^{q+1} - \theta_0 \rVert_2$.
        loss: cross-entropy against the labels of the re-training, in nats.
        agreement: share of nodes predicted as these labels say.
    """

    structural: Float[Tensor, "b q"]
    distance: Float[Tensor, "b q"]
    moved: Float[Tensor, "b q"]
    loss: Float[Tensor, "b q"]
    agreement: Float[Tensor, "b q"]


def retrain(
    start: Network,
    trained: Network,
    graphs: GraphBatch,
    labels: Int[Tensor, "b n"],
    *,
    epochs: int = 200,
    lr: float = 1e-3,
    weight_decay: float = 5e-4,
) -> tuple[Path, Network]:
    r"""Step 3: from $\theta_0$, full-batch training on every test graph with hard labels.

    The loss is the sum over graphs of the mean cross-entropy over nodes, so that Adam, which works entry by entry,
    does for each graph what it would do alone.

    Args:
        start: $\theta_0$, one copy per graph; it is not changed.
        trained: $\theta^*$, likewise.
        graphs: the test graphs.
        labels: pseudo-labels; entries of absent nodes are ignored.
        epochs: number of steps $Q$.
        lr: learning rate of a new Adam.
        weight_decay: its $L_2$ penalty.

    Returns:
        The recorded path and the network after the last step.
    """
    network = Network(start.kind, *({k: p.clone() for k, p in part.items()} for part in (start.weights, start.buffers)))
    parameters = [p.requires_grad_() for p in network.weights.values()]
    optimizer = torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    goal, origin = trained.vector(), start.vector()
    record: list[Tensor] = []
    for _ in range(epochs):
        embeddings = network.embeddings(graphs, is_training=True)
        logits = network.logits(embeddings)
        losses = mean_cross_entropy(logits, labels, graphs.is_node)
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        with torch.no_grad():
            vector = network.vector()
            agreement = accuracy(logits, labels, graphs.is_node)
            structural = structural_loss(embeddings, graphs)
            distances = (vector - goal).norm(dim=1), (vector - origin).norm(dim=1)
            record.append(torch.stack([structural, *distances, losses.detach(), agreement], dim=1))
    for p in parameters:
        p.requires_grad_(False)
    return Path(*torch.stack(record, dim=2).unbind(1)), network


def mean_cross_entropy(
    logits: Float[Tensor, "b n k"], labels: Int[Tensor, "b n"], is_node: Bool[Tensor, "b n"]
) -> Float[Tensor, " b"]:
    """Mean over the nodes of each graph, in nats."""
    losses = F.cross_entropy(logits.flatten(0, 1), labels.where(is_node, 0).flatten(), reduction="none")
    return (losses.view_as(is_node) * is_node).sum(1) / is_node.sum(1)


def accuracy(
    logits: Float[Tensor, "b n k"], labels: Int[Tensor, "b n"], is_node: Bool[Tensor, "b n"]
) -> Float[Tensor, " b"]:
    """Share of the nodes of each graph whose largest logit is that of their label."""
    return ((logits.argmax(-1) == labels) & is_node).sum(1) / is_node.sum(1)


def stop_epochs(
    gaps: Float[Tensor, "b q"], margin: Float[Tensor, " b"] | float, *, first: int = 5
) -> Int[Tensor, " b"]:
    r"""Step 4: the first epoch $q \ge q_{min}$ (from 0) with $|D^q - D_{ref}| < \varepsilon$, else the last one.

    Args:
        gaps: $D^q - D_{ref}$, or another quantity that has to come close to zero.
        margin: $\varepsilon$, absolute; for a relative margin pass `rate * structural`.
        first: $q_{min}$.

    Raises:
        ValueError: if `first` lies outside the recorded epochs.
    """
    n_epochs = gaps.shape[1]
    if not 0 <= first < n_epochs:
        raise ValueError(f"first must be an epoch between 0 and {n_epochs - 1}, got {first}")
    margin = torch.as_tensor(margin, device=gaps.device, dtype=gaps.dtype)
    is_close = gaps.abs() < margin.expand(len(gaps))[:, None]
    is_close[:, :first] = False
    is_close[:, -1] = True
    return is_close.int().argmax(1)


def lebed_score(
    path: Path, ref: Reference, *, margin_rate: float = 0.02, margin: float = 0.0, first: int = 5
) -> tuple[Float[Tensor, " b"], Int[Tensor, " b"]]:
    r"""Step 5: $\lVert \theta^\dagger - \theta^* \rVert_2$ after the step of the stopping epoch, and that epoch.

    Args:
        path: the re-training.
        ref: the model's own structural loss.
        margin_rate: margin as a share of $D_{ref}$ (official scripts of the domain and temporal shifts).
        margin: absolute margin, which replaces the relative one if positive (script of the feature shift).
        first: $q_{min}$.
    """
    epsilon = torch.full_like(ref.structural, margin) if margin > 0 else margin_rate * ref.structural
    stop = stop_epochs(path.structural - ref.structural[:, None], epsilon, first=first)
    return at_epoch(path.distance, stop), stop


def at_epoch(values: Float[Tensor, "b q"], epochs: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """The value of each graph at its epoch."""
    return values.gather(1, epochs[:, None])[:, 0]


def pretrain(
    start: Network,
    train: GraphBatch,
    train_y: Int[Tensor, "b n"],
    val: GraphBatch,
    val_y: Int[Tensor, "b m"],
    *,
    epochs: int = 200,
    lr: float = 1e-3,
    weight_decay: float = 5e-4,
) -> tuple[Network, Float[Tensor, " b"]]:
    r"""$\theta^*$: supervised training from $\theta_0$, each copy at its epoch of best validation accuracy.

    Returns:
        The trained copies and their validation accuracies.
    """
    network = Network(start.kind, *({k: p.clone() for k, p in part.items()} for part in (start.weights, start.buffers)))
    best = Network(start.kind, *({k: p.clone() for k, p in part.items()} for part in (start.weights, start.buffers)))
    parameters = [p.requires_grad_() for p in network.weights.values()]
    optimizer = torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    best_accuracy = torch.full((len(start),), -1.0, device=train.x.device)
    for _ in range(epochs):
        logits = network.logits(network.embeddings(train, is_training=True))
        optimizer.zero_grad()
        mean_cross_entropy(logits, train_y, train.is_node).sum().backward()
        optimizer.step()
        with torch.no_grad():
            logits = network.logits(network.embeddings(val, is_training=False))
            current = accuracy(logits, val_y, val.is_node)
            is_better = current > best_accuracy
            best_accuracy = current.where(is_better, best_accuracy)
            for part in ("weights", "buffers"):
                for name, p in getattr(network, part).items():
                    getattr(best, part)[name][is_better] = p[is_better]
    return best, best_accuracy


def concatenated(parts: list[Path]) -> Path:
    """Paths of several batches of graphs as one."""
    return Path(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Path)))
