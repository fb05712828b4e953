r"""Top-down signals for single-forward learning without back-propagated errors.

SF-Top2Input hands a layer the state of the layer above as a further input; SF-Top2Loss compares the mean of a layer's
output and the states above it. All layers are trained together, over time steps, on detached states.
Park et al. (ICLR 2024, arXiv:2403.11004).
"""

import time
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glocal.graphs.forwardgnn import LayerwiseFit, Runs, augmented_features, augmented_graph, copy_losses, sf_logits
from glocal.graphs.forwardgnn_baselines import one_hot
from glocal.graphs.forwardgnn_layers import Layer, StackedGraph, make_layer, taken, train_copies, unit_rows

SIGNALS = ("input", "loss")
BURN_IN = 2  # time steps of a prediction that do not count
States = list[Tensor]


def label_states(runs: Runs) -> Float[Tensor, "b nk k"]:
    """The state above the last layer: one-hot for training and virtual nodes, `1 / k` for all others."""
    codes = torch.full((runs.copies, runs.n_nodes), -1, device=runs.y.device)
    codes.scatter_(1, runs.train, runs.y[runs.train])
    classes = torch.arange(runs.n_classes, device=runs.y.device).expand(runs.copies, -1)
    return one_hot(torch.cat([codes, classes], dim=1), runs.n_classes)


def layer_input(states: Sequence[Tensor], j: int) -> Float[Tensor, "b n fg"]:
    r"""SF-Top2Input: layer $j$ reads $[\nu(s_{j-1}) \Vert \nu(s_{j+1})]$, both detached."""
    return torch.cat([unit_rows(states[j - 1].detach()), unit_rows(states[j + 1].detach())], dim=2)


def blended(own: Float[Tensor, "b n h"], above: Sequence[Tensor]) -> Float[Tensor, "b n h"]:
    r"""SF-Top2Loss: mean of a layer's output and the detached states of all layers above it."""
    return (own + sum(state.detach() for state in above)) / (1 + len(above))


def update_order(n_layers: int, is_alternating: bool = True) -> tuple[tuple[int, ...], ...]:
    """Groups of layers (from 1) that are updated at once: 1, 3, ..., then 2, 4, ..., or all together.

    Source: the official code, which counts layers from zero and starts with the even ones.
    """
    everyone = tuple(range(1, n_layers + 1))
    return (everyone[::2], everyone[1::2]) if is_alternating and n_layers > 1 else (everyone,)


class TopDown:
    """Layers, graph and states of one training of all copies.

    Args:
        runs: graph and splits.
        signal: `"input"` or `"loss"`.
        kind: `"gcn"`, `"sage"` or `"gat"`.
        n_layers: depth.
        n_hidden: width.
        n_heads: attention heads of GAT.
        temperature: $\\tau$.
        is_alternating: whether layers 1, 3, ... are updated before layers 2, 4, ... (SF-Top2Input).
        generator: source of virtual features and weights.
    """

    def __init__(
        self,
        runs: Runs,
        *,
        signal: str,
        kind: str,
        n_layers: int,
        n_hidden: int,
        n_heads: int,
        temperature: float,
        is_alternating: bool,
        generator: torch.Generator,
    ) -> None:
        self.runs, self.signal, self.temperature = runs, signal, temperature
        self.graph: StackedGraph = augmented_graph(runs)
        features = augmented_features(runs, generator=generator)
        self.bottom = features if signal == "input" else unit_rows(features)
        self.top = label_states(runs)
        self.order = update_order(n_layers, is_alternating)
        widths = [features.shape[2], *[n_hidden] * n_layers, runs.n_classes]
        extra = widths[2:] if signal == "input" else [0] * n_layers
        self.layers: list[Layer] = [
            make_layer(kind, runs.copies, widths[j] + extra[j], n_hidden, n_heads=n_heads, generator=generator)
            for j in range(n_layers)
        ]
        self.n_hidden = n_hidden

    def logits(self, z: Float[Tensor, "b n h"], rows: Int[Tensor, "b m"] | None = None) -> Float[Tensor, "b _ k"]:
        """Inner products of nodes (None: all real ones) with the virtual nodes."""
        virtual = z[:, self.runs.n_nodes :]
        return sf_logits(z[:, : self.runs.n_nodes] if rows is None else taken(z, rows), virtual, self.temperature)

    def outputs(self, states: Sequence[Tensor], j: int) -> Float[Tensor, "b n h"]:
        """What layer `j` (from 1) computes from the states."""
        layer = self.layers[j - 1]
        x = layer_input(states, j) if self.signal == "input" else states[j - 1].detach()
        z: Tensor = layer(layer.prepare(self.graph, x)).relu()
        return z

    @torch.no_grad()
    def initial_states(self) -> States:
        """One bottom-up pass; what comes from above is zero until it exists."""
        b, total = self.bottom.shape[:2]
        states = [self.bottom, *[self.bottom.new_zeros(b, total, self.n_hidden) for _ in self.layers]]
        states.append(torch.zeros_like(self.top))
        for j in range(1, len(self.layers) + 1):
            z = self.outputs(states, j)
            states[j] = z if self.signal == "input" else unit_rows(z)
        states[-1] = self.top
        return states

    def step(self, states: States) -> tuple[States, list[Tensor]]:
        """One time step: new states, and the embedding of each layer that enters its loss and its prediction."""
        n_layers, new = len(self.layers), list(states)
        embeddings: dict[int, Tensor] = {}
        for group in self.order if self.signal == "input" else (tuple(range(1, n_layers + 1)),):
            read = list(new) if self.signal == "input" else states
            for j in group:
                z = self.outputs(read, j)
                embeddings[j] = z if self.signal == "input" else blended(z, states[j + 1 : n_layers + 1])
                new[j] = z.detach() if self.signal == "input" else unit_rows(z.detach())
        return new, [embeddings[j] for j in range(1, n_layers + 1)]

    @torch.no_grad()
    def scores(self, time_steps: int) -> Float[Tensor, "l b n k"]:
        """Probabilities summed over layers, with fixed weights: a mean over time steps after a bottom-up pass.

        SF-Top2Input leaves the first two of the `time_steps` out, while signals still travel, as the official code
        does. The states of SF-Top2Loss do not depend on what is above: the bottom-up pass is their fixed point, and
        one step is enough.
        """
        states, kept = self.initial_states(), []
        n_steps = max(time_steps, 1) if self.signal == "input" else 1
        for step in range(n_steps):
            states, embeddings = self.step(states)
            if step >= min(BURN_IN, n_steps - 1):
                kept.append(torch.stack([self.logits(z).softmax(-1) for z in embeddings]))
        return torch.stack(kept).mean(0).cumsum(0)


def train_topdown(
    runs: Runs,
    *,
    signal: str = "input",
    kind: str = "gcn",
    n_layers: int = 3,
    n_hidden: int = 128,
    n_heads: int = 4,
    temperature: float = 1.0,
    is_alternating: bool = True,
    test_time_steps: int = 10,
    lr: float = 1e-3,
    epochs: int = 1000,
    val_every: int = 2,
    patience: int = 100,
    generator: torch.Generator,
) -> LayerwiseFit:
    r"""Train all layers together, one local SF loss each, over `epochs` time steps.

    Args:
        runs: graph and splits.
        signal: `"input"` (SF-Top2Input) or `"loss"` (SF-Top2Loss, gradients clipped at norm one per layer).
        kind: `"gcn"`, `"sage"` or `"gat"`.
        n_layers: depth.
        n_hidden: width.
        n_heads: attention heads of GAT.
        temperature: $\tau$.
        is_alternating: whether layers 1, 3, ... are updated before layers 2, 4, ... (SF-Top2Input).
        test_time_steps: time steps of a prediction of SF-Top2Input after its bottom-up pass.
        lr: learning rate of every layer's Adam.
        epochs: time steps of the training, one optimiser step per layer each.
        val_every: time steps between evaluations.
        patience: time steps without progress before training stops; 0 for none.
        generator: source of virtual features and weights.

    Raises:
        ValueError: for an unknown signal.
    """
    if signal not in SIGNALS:
        raise ValueError(f"signal must be one of {', '.join(SIGNALS)}, got {signal!r}")
    start = time.process_time()
    model = TopDown(
        runs,
        signal=signal,
        kind=kind,
        n_layers=n_layers,
        n_hidden=n_hidden,
        n_heads=n_heads,
        temperature=temperature,
        is_alternating=is_alternating,
        generator=generator,
    )
    current = [model.initial_states()]
    targets = runs.y[runs.train]

    def losses() -> Tensor:
        current[0], embeddings = model.step(current[0])
        return torch.stack([copy_losses(model.logits(z, runs.train), targets) for z in embeddings]).sum(0)

    groups = [list(layer.parameters()) for layer in model.layers]
    train_copies(
        [parameter for group in groups for parameter in group],
        losses,
        lambda: runs.accuracy(model.scores(test_time_steps)[-1], runs.val),
        lr=lr,
        epochs=epochs,
        val_every=val_every,
        patience=patience,
        clip_groups=groups if signal == "loss" else (),
    )
    scores = model.scores(test_time_steps)
    val, test = runs.accuracy(scores, runs.val), runs.accuracy(scores, runs.test)
    return LayerwiseFit(scores, val, test, time.process_time() - start, layers=tuple(model.layers))
