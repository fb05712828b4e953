r"""Networks with a deep linear head, trained with decay on features instead of backbone (arXiv:2301.00437).

Several runs train side by side: their parameters are stacked and `torch.func.vmap` batches the network.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, vmap

from glocal.data import load
from glocal.data.types import ImageData

T = TypeVar("T")


class LinearHeadNet(nn.Module):
    r"""A backbone with ReLU features $h$, then $M$ linear layers without activation.

    Args:
        backbone: maps inputs to features of shape `(n, d)`.
        d: number of features.
        n_classes: number of logits.
        depth: number of linear layers $M$.
        width: width of the hidden linear layers.
        has_bias: whether the LAST layer has a bias.
    """

    def __init__(
        self, backbone: nn.Module, d: int, n_classes: int, *, depth: int = 1, width: int = 512, has_bias: bool = False
    ) -> None:
        super().__init__()
        sizes = [d] + [width] * (depth - 1) + [n_classes]
        self.backbone = backbone
        self.head = nn.ModuleList(
            nn.Linear(a, b, bias=has_bias and layer == depth - 1)
            for layer, (a, b) in enumerate(itertools.pairwise(sizes))
        )

    def forward(self, x: Float[Tensor, " n *shape"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k"]]:
        """Features before the head, and logits."""
        features = self.backbone(x).flatten(1)
        logits = features
        for layer in self.head:
            logits = layer(logits)
        return features, logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(_conv(c_in, c_out, stride), nn.ReLU(), _conv(c_out, c_out))
        is_same = stride == 1 and c_in == c_out
        self.shortcut = nn.Identity() if is_same else _conv(c_in, c_out, stride, kernel=1)

    def forward(self, x: Float[Tensor, "n c_in h w"]) -> Float[Tensor, "n c_out h2 w2"]:
        """Residual branch plus shortcut."""
        return torch.relu(self.residual(x) + self.shortcut(x))


def _conv(c_in: int, c_out: int, stride: int = 1, *, kernel: int = 3) -> nn.Sequential:
    # statistics of the batch at hand in training AND evaluation: running ones cannot be batched over runs
    norm = nn.BatchNorm2d(c_out, track_running_stats=False)
    return nn.Sequential(nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), norm)


def make_backbone(name: str, shape: Sequence[int], *, width: int, n_hidden: int) -> tuple[nn.Module, int]:
    """Backbone and its number of features.

    Args:
        name: `"mlp"` (hidden ReLU layers of equal width), `"resnet18"` or `"vgg16"` (512 features, for 32x32 images).
        shape: channels, height and width of the images.
        width: width of the hidden layers of the MLP.
        n_hidden: number of hidden layers of the MLP.

    Raises:
        ValueError: for another name.
    """
    channels = shape[0]
    if name == "mlp":
        sizes = [math.prod(shape)] + [width] * n_hidden
        layers: list[nn.Module] = [nn.Flatten()]
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU()]
        return nn.Sequential(*layers), sizes[-1]
    if name == "resnet18":
        layers, c = [_conv(channels, 64), nn.ReLU()], 64
        for c_out, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            layers += [BasicBlock(c, c_out, stride), BasicBlock(c_out, c_out, 1)]
            c = c_out
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1)), 512
    if name == "vgg16":
        layers, c = [], channels
        for c_out, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(repeats):
                layers += [_conv(c, c_out), nn.ReLU()]
                c = c_out
            layers.append(nn.MaxPool2d(2))
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1)), 512
    raise ValueError(f"backbone must be 'mlp', 'resnet18' or 'vgg16', got {name!r}")


def init_network(net: nn.Module, *, generator: torch.Generator) -> nn.Module:
    r"""Draw all weights from `generator`: He's law for layers followed by a ReLU, variance $1/d$ in the linear head."""
    for name, p in net.named_parameters():
        if p.ndim > 1:
            gain = 1.0 if name.startswith("head") else 2.0
            draw = torch.randn(p.shape, generator=generator, device=generator.device)
            p.data.copy_(draw * math.sqrt(gain / p[0].numel()))
        else:
            p.data.fill_(1.0 if name.endswith("weight") else 0.0)  # scale of a normalisation, or a bias
    return net


@dataclass(frozen=True)
class Snapshot:
    """What the metrics need after some step, in float64: last features, head and training accuracy of every run."""

    step: int
    features: Float[Tensor, "runs d n"]
    weights: tuple[Float[Tensor, "runs _ _"], ...]
    accuracy: Float[Tensor, " runs"]
    loss: Float[Tensor, " runs"]


def train_networks(
    nets: Sequence[nn.Module],
    x: Float[Tensor, " n *shape"],
    labels: Int[Tensor, " n"],
    *,
    n_classes: int,
    head_decay: float,
    feature_decay: Sequence[float],
    backbone_decay: Sequence[float],
    steps: int,
    record_at: Sequence[int],
    measure: Callable[[Snapshot], T],
    generator: torch.Generator,
    loss: str = "mse",
    lr: float = 1e-3,
    drop_at: Sequence[int] = (),
    optimizer: str = "adam",
    batch_size: int = 0,
) -> list[T]:
    r"""Train all `nets` side by side on the mean loss plus penalties.

    Per run: $\frac1{2n}\lVert f(X) - Y\rVert_F^2 + \frac{\lambda_W}2\sum_l\lVert W_l\rVert_F^2
    + \frac{\lambda_H'}{2n}\lVert H\rVert_F^2 + \frac{\lambda_B}2\lVert\theta_B\rVert^2$, with sums over the batch. The
    theory's $\lambda_H$ is $\lambda_H'/N$. Backbone decay zero is the paper's "separate decay", feature decay zero the
    ordinary weight decay.

    Args:
        nets: networks of one architecture, one per run.
        x: training inputs, the same for all runs.
        labels: class indices.
        n_classes: $K$.
        head_decay: $\lambda_W$ of the linear layers; biases of the head are not penalised.
        feature_decay: $\lambda_H'$ of each run.
        backbone_decay: $\lambda_B$ of each run.
        steps: optimiser steps.
        record_at: steps after which the whole training set is measured.
        measure: reduces a snapshot to what is kept.
        generator: draws the minibatches.
        loss: `"mse"` or `"ce"`.
        lr: learning rate.
        drop_at: steps at which the learning rate falls to a tenth.
        optimizer: `"adam"` or `"sgd"` (momentum 0.9).
        batch_size: examples per step; 0 for all of them.

    Returns:
        One measurement per recorded step.

    Raises:
        ValueError: for decays of another number than networks, or an unknown loss or optimiser.

    Source: practical experiments, argument `sep_decay` of the official code.
    """
    if not len(nets) == len(feature_decay) == len(backbone_decay):
        raise ValueError(
            f"decays must be one per network ({len(nets)}), got {len(feature_decay)}, {len(backbone_decay)}"
        )
    if loss not in ("mse", "ce") or optimizer not in ("adam", "sgd"):
        raise ValueError(f"loss must be mse or ce and optimizer adam or sgd, got {loss!r} and {optimizer!r}")
    shapes = {name: p.shape for name, p in nets[0].named_parameters()}
    # one row per run: penalties and optimiser act on a single tensor, the network on views of it
    theta = torch.stack([torch.cat([p.detach().flatten() for p in net.parameters()]) for net in nets]).requires_grad_()
    decay = torch.stack(
        [
            torch.cat(
                [x.new_full((shape.numel(),), _decay_of(name, head_decay, own)) for name, shape in shapes.items()]
            )
            for own in backbone_decay
        ]
    )
    of_features = x.new_tensor(feature_decay)
    batch_size = min(batch_size, len(x)) if batch_size else len(x)

    def named() -> dict[str, Tensor]:
        pieces = theta.split([shape.numel() for shape in shapes.values()], dim=1)
        return {name: p.view(len(nets), *shape) for (name, shape), p in zip(shapes.items(), pieces, strict=True)}

    def forward(inputs: Tensor) -> tuple[Tensor, Tensor]:
        return vmap(lambda p: functional_call(nets[0], p, (inputs,)))(named())

    def objective(inputs: Tensor, targets: Tensor) -> Tensor:  # all but the weight penalties
        features, logits = forward(inputs)
        if loss == "mse":
            value = 0.5 * (logits - F.one_hot(targets, n_classes)).square().sum(-1).mean(-1)
        else:
            value = (logits.logsumexp(-1) - logits[:, torch.arange(len(targets)), targets]).mean(-1)
        return value + 0.5 * of_features * features.square().sum(-1).mean(-1)

    opt: torch.optim.Optimizer = (
        torch.optim.Adam([theta], lr=lr, fused=True)
        if optimizer == "adam"
        else torch.optim.SGD([theta], lr=lr, momentum=0.9, fused=True)
    )
    measured, order = [], torch.empty(0, dtype=torch.int64, device=x.device)
    for step in range(steps + 1):
        if step in record_at:
            measured.append(measure(_snapshot(forward, named(), x, labels, step, batch_size)))
        if step == steps:
            break
        if step in drop_at:
            for group in opt.param_groups:
                group["lr"] *= 0.1
        if batch_size < len(x):
            if len(order) < batch_size:
                order = torch.randperm(len(x), generator=generator, device=generator.device).to(x.device)
            batch, order = order[:batch_size], order[batch_size:]
            inputs, targets = x[batch], labels[batch]
        else:
            inputs, targets = x, labels
        opt.zero_grad()
        objective(inputs, targets).sum().backward()
        with torch.no_grad():  # gradient of the weight penalties
            theta.grad = (torch.zeros_like(theta) if theta.grad is None else theta.grad) + decay * theta
        opt.step()
    return measured


def _decay_of(name: str, head_decay: float, backbone_decay: float) -> float:
    if name.startswith("backbone"):
        return backbone_decay
    return head_decay if name.endswith("weight") else 0.0


@torch.no_grad()
def _snapshot(
    forward: Callable[[Tensor], tuple[Tensor, Tensor]],
    params: dict[str, Tensor],
    x: Tensor,
    labels: Tensor,
    step: int,
    batch_size: int,
) -> Snapshot:
    parts = [forward(part) for part in x.split(batch_size)]
    features, logits = (torch.cat(tensors, 1) for tensors in zip(*parts, strict=True))
    names = sorted(name for name in params if name.startswith("head") and name.endswith("weight"))
    onehot = F.one_hot(labels, logits.shape[-1])
    return Snapshot(
        step=step,
        features=features.double().mT,
        weights=tuple(params[name].detach().double().clone() for name in names),
        accuracy=(logits.argmax(-1) == labels).double().mean(-1),
        loss=0.5 * (logits - onehot).square().sum(-1).mean(-1),
    )


def load_training_images(name: str, *, fake: bool = False) -> ImageData:
    """The images of a set, or its training part if it is published with a split; random stand-ins with `fake`."""
    data = load(name, fake=fake)
    return data if isinstance(data, ImageData) else data.train


def choose_examples(
    data: ImageData, class_sizes: Sequence[int], *, generator: torch.Generator
) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"]]:
    """The first `len(class_sizes)` classes with the wanted sizes, standardised over all pixels; sorted by class.

    Raises:
        ValueError: if a class has too few images.
    """
    chosen = []
    for k, size in enumerate(class_sizes):
        members = (data.labels == k).nonzero().flatten()
        if len(members) < size:
            raise ValueError(f"class_sizes must not exceed the images of a class, got {size} > {len(members)}")
        chosen.append(members[torch.randperm(len(members), generator=generator)[:size]])
    index = torch.cat(chosen)
    images = data.images[index]
    return (images - images.mean()) / images.std(), data.labels[index]
