"""Graph contrastive learning (GRACE) with and without a compactness regulariser, several runs side by side."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from glocal.graphs.pot import (
    VARIANTS,
    Encoder,
    compactness_bound,
    compactness_loss,
    contrast_weights,
    encode,
    entry_range,
    relaxations,
)
from glocal.graphs.pot_views import Pattern, degree_rates, dropped, entry_bounds, uniform_rates, whole

REGULARIZERS = ("none", "naive", *VARIANTS)
BACKBONES = ("grace", "gca")


class ContrastiveNetwork(nn.Module):
    """Encoders and projection heads of several runs.

    Args:
        runs: number of runs.
        n_features: input features.
        n_hidden: width $d$ of the embeddings.
        n_proj: width of the projection head.
        activation: `"relu"`, or `"prelu"` with one learned slope per run, kept in [0, 1].
        n_first: width of the first layer; $2d$ by default, as in the official code.
        generator: source of the initial weights (Glorot for the convolutions, PyTorch's default for the head).

    Raises:
        ValueError: for an unknown activation.
    """

    def __init__(
        self,
        runs: int,
        n_features: int,
        n_hidden: int,
        n_proj: int,
        *,
        activation: str = "relu",
        n_first: int | None = None,
        generator: torch.Generator,
    ) -> None:
        if activation not in ("relu", "prelu"):
            raise ValueError(f"activation must be relu or prelu, got {activation!r}")
        super().__init__()
        device = generator.device

        def uniform(limit: float, *shape: int) -> nn.Parameter:
            drawn = torch.rand(runs, *shape, generator=generator, device=device)
            return nn.Parameter(limit * (2 * drawn - 1))

        wide = n_first or 2 * n_hidden
        self.weight1 = uniform(math.sqrt(6 / (n_features + wide)), n_features, wide)
        self.bias1 = nn.Parameter(torch.zeros(runs, 1, wide, device=device))
        self.weight2 = uniform(math.sqrt(6 / (wide + n_hidden)), wide, n_hidden)
        self.bias2 = nn.Parameter(torch.zeros(runs, 1, n_hidden, device=device))
        self.head1 = uniform(1 / math.sqrt(n_hidden), n_hidden, n_proj)
        self.head_bias1 = uniform(1 / math.sqrt(n_hidden), 1, n_proj)
        self.head2 = uniform(1 / math.sqrt(n_proj), n_proj, n_hidden)
        self.head_bias2 = uniform(1 / math.sqrt(n_proj), 1, n_hidden)
        slope = torch.full((runs, 1, 1), 0.25 if activation == "prelu" else 0.0, device=device)
        self.slope = nn.Parameter(slope, requires_grad=activation == "prelu")

    def encoder(self) -> Encoder:
        """The weights of the two convolutions."""
        return Encoder(self.weight1, self.bias1, self.weight2, self.bias2, self.slope)

    def project(self, embeddings: Float[Tensor, "runs n d"]) -> Float[Tensor, "runs n d"]:
        """The projection head: linear, ELU, linear."""
        return F.elu(embeddings @ self.head1 + self.head_bias1) @ self.head2 + self.head_bias2


class _Contrast(torch.autograd.Function):
    """Value and gradient of `contrastive_loss` for unit rows; the similarity blocks of one run at a time are held."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, temperature: float) -> Tensor:
        runs, n, _ = first.shape
        losses, gradients = first.new_empty(runs), (torch.empty_like(first), torch.empty_like(second))
        root = math.sqrt(temperature)
        for run in range(runs):
            a, b = first[run] / root, second[run] / root
            between, within = torch.mm(a, b.T).exp_(), [torch.mm(z, z.T).exp_().fill_diagonal_(0) for z in (a, b)]
            sums = between.sum(1) + within[0].sum(1), between.sum(0) + within[1].sum(1)
            losses[run] = (sums[0].log() + sums[1].log()).mean() / 2 - (a * b).sum(1).mean()
            inverse = 1 / sums[0], 1 / sums[1]
            between.mul_(inverse[0][:, None] + inverse[1])
            for view, (own, other, weights) in enumerate(((a, b, between), (b, a, between.T))):
                within[view].mul_(inverse[view][:, None] + inverse[view])
                attraction = torch.mm(weights, other).addmm_(within[view], own).sub_(other, alpha=2)
                torch.mul(attraction, 1 / (2 * n * root), out=gradients[view][run])
        ctx.save_for_backward(*gradients)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor, None]:
        first, second = ctx.saved_tensors
        return scale[:, None, None] * first, scale[:, None, None] * second, None


def contrastive_loss(
    first: Float[Tensor, "runs n d"], second: Float[Tensor, "runs n d"], temperature: float
) -> Float[Tensor, " runs"]:
    r"""GRACE's loss, with cosine $s$ the mean over nodes and directions of
    $-\log\frac{e^{s(h_i, h'_i)/\tau}}{\sum_j e^{s(h_i, h'_j)/\tau} + \sum_{j \ne i} e^{s(h_i, h_j)/\tau}}$.

    The gradient is written out, so that time is seven products of size $n \times n \times d$ per run and memory three
    matrices of $n^2$ entries.

    Args:
        first: projected embeddings $h$ of the first view.
        second: projected embeddings $h'$ of the second view.
        temperature: $\tau$.

    Source: Zhu et al., "Deep graph contrastive representation learning", 2020, equations 1 and 2.
    """
    losses: Tensor = _Contrast.apply(F.normalize(first, dim=-1), F.normalize(second, dim=-1), temperature)
    return losses


@dataclass(frozen=True)
class Settings:
    r"""One training configuration.

    Args:
        rates: drop rates $p_1, p_2$ of the two views.
        temperature: $\tau$ of the contrastive loss.
        pot_weight: $\kappa$, weight of the regulariser; the contrastive loss gets $1 - \kappa$.
        regularizer: `"none"`, a variant of the bound, or `"naive"`, $\log(1 + e^{-z_i \cdot w_i})$ without a bound.
        backbone: `"grace"` drops edges uniformly, `"gca"` spares edges to nodes of high degree.
        lr: learning rate of Adam.
        weight_decay: of Adam, on all parameters.
        epochs: number of steps.

    Raises:
        ValueError: for an unknown choice or a weight outside [0, 1].
    """

    rates: tuple[float, float] = (0.4, 0.3)
    temperature: float = 0.7
    pot_weight: float = 0.0
    regularizer: str = "none"
    backbone: str = "grace"
    lr: float = 5e-3
    weight_decay: float = 1e-5
    epochs: int = 200

    def __post_init__(self) -> None:
        if self.regularizer not in REGULARIZERS:
            raise ValueError(f"regularizer must be one of {', '.join(REGULARIZERS)}, got {self.regularizer!r}")
        if self.backbone not in BACKBONES:
            raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}, got {self.backbone!r}")
        if not 0 <= self.pot_weight <= 1:
            raise ValueError(f"pot_weight must be in [0, 1], got {self.pot_weight}")


def train(
    network: ContrastiveNetwork,
    x: Float[Tensor, "n f"],
    graph: Pattern,
    settings: Settings,
    *,
    generator: torch.Generator,
    record: Callable[[int, Encoder], None] | None = None,
) -> float:
    r"""Train all runs on $(1 - \kappa)\,\mathcal L_{\mathrm{NCE}} + \kappa\,\mathcal L_{\mathrm{POT}}$; seconds taken.

    The regulariser is evaluated at the two views of the step, each against the other; gradients flow through
    everything, the contrast weights included.

    Args:
        network: the runs; changed in place.
        x: features, the same for all runs.
        graph: the pattern.
        settings: the configuration.
        generator: source of the views, on the device of the network.
        record: called with the epoch (from 0, before the first step) and the detached weights; its time is not counted.
    """
    runs, kind = len(network.weight1), settings.regularizer
    rate_of = uniform_rates if settings.backbone == "grace" else degree_rates
    rates = [rate_of(graph, rate) for rate in settings.rates]
    has_bound = kind in VARIANTS
    ranges = [entry_range(graph, entry_bounds(graph, rate), runs) for rate in settings.rates] if has_bound else []
    clean = graph.operator(graph.normalized(whole(graph, runs)))
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    seconds = 0.0
    for epoch in range(settings.epochs + 1):
        if record is not None:
            with torch.no_grad():
                record(epoch, network.encoder())
        if epoch == settings.epochs:
            break
        start = time.process_time()
        encoder = network.encoder()
        messages = encoder.messages(x)
        operators = [graph.operator(graph.normalized(dropped(graph, r, runs, generator=generator))) for r in rates]
        hidden = [encode(encoder, messages, operator) for operator in operators]
        z1, z2 = (one.embeddings for one in hidden)
        loss = contrastive_loss(network.project(z1), network.project(z2), settings.temperature)
        if kind != "none":
            terms = []
            for view, (z, other) in enumerate(((z1, z2), (z2, z1))):
                w = contrast_weights(other)
                if kind == "naive":
                    terms.append((z * w).sum(-1))
                    continue
                layers = relaxations(encoder, messages, ranges[view], clean=clean, variant=kind)
                pre1 = hidden[view].pre1
                terms.append(compactness_bound(encoder, messages, operators[view], layers, w, variant=kind, pre1=pre1))
            loss = (1 - settings.pot_weight) * loss + settings.pot_weight * compactness_loss(terms)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        if network.slope.requires_grad:
            network.slope.data.clamp_(0, 1)
        seconds += time.process_time() - start
    return seconds


@dataclass(frozen=True)
class Probe:
    """Test accuracies of linear probes, and the validation accuracies that chose their weight decay."""

    val: Float[Tensor, " runs"]
    test: Float[Tensor, " runs"]
    preds: Int[Tensor, "runs n"]


def linear_probe(
    embeddings: Float[Tensor, "runs n d"],
    y: Int[Tensor, " n"],
    train_nodes: Int[Tensor, "runs a"],
    val_nodes: Int[Tensor, "runs b"],
    test_nodes: Int[Tensor, "runs c"],
    *,
    decays: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2),
    lr: float = 0.05,
    steps: int = 300,
) -> Probe:
    r"""Multinomial logistic regression on frozen embeddings of unit length, per run; the accuracy is the micro-F1.

    Args:
        embeddings: of all nodes.
        y: classes.
        train_nodes: labelled nodes of each run.
        val_nodes: they choose the weight decay, separately for each run; the first of the best counts.
        test_nodes: read once, for the chosen weights.
        decays: candidates for the weight of $\frac12\lVert W \rVert^2$.
        lr: learning rate of Adam.
        steps: full-batch steps.
    """
    runs, _, d = embeddings.shape
    n_classes, device = int(y.max()) + 1, embeddings.device
    x = F.normalize(embeddings.detach(), dim=-1)
    take = torch.arange(runs, device=device)[:, None]
    inputs, target = x[take, train_nodes], F.one_hot(y[train_nodes], n_classes).to(x.dtype)
    weight = torch.zeros(len(decays), runs, d, n_classes, device=device, dtype=x.dtype)
    bias = torch.zeros(len(decays), runs, 1, n_classes, device=device, dtype=x.dtype)
    decay = x.new_tensor(decays)[:, None, None, None]
    optimizer = torch.optim.Adam([weight, bias], lr=lr, fused=True)
    for _ in range(steps):
        error = ((inputs @ weight + bias).softmax(-1) - target) / inputs.shape[1]
        weight.grad, bias.grad = inputs.mT @ error + decay * weight, error.sum(-2, keepdim=True)
        optimizer.step()
    preds = (x @ weight + bias).argmax(-1)
    is_right = (preds == y).to(x.dtype)
    val = is_right[:, take, val_nodes].mean(-1)
    best = val.argmax(0)
    run = take[:, 0]
    test = is_right[best, run][take, test_nodes].mean(-1)
    return Probe(val.amax(0), test, preds[best, run])
