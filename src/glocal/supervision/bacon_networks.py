r"""The networks of all methods on a frozen trunk, and the SimCLR pre-training of a small trunk.

n images, d features, k classes.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from glocal.nn.networks import MLP, build
from glocal.nn.stack import NetworkStack
from glocal.nn.training import Recipe, minibatches, train
from glocal.supervision.bacon import contrastive_loss, similarities
from glocal.supervision.bacon_data import Views
from glocal.supervision.bacon_methods import AnyMethod, OpenCon, Settings


class ResidualBlock(nn.Module):
    r"""Last block of the small trunk: $h \leftarrow h + W_2\max(0, W_1h)$."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(n_features, n_features), nn.Linear(n_features, n_features)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Features."""
        return x + self.outer(F.relu(self.inner(x)))


class ClassHead(nn.Module):
    r"""Cosines with $C$ unit prototypes: a bias-free linear map, weight-normalised with the gain fixed to 1."""

    def __init__(self, n_features: int, n_classes: int) -> None:
        super().__init__()
        self.prototypes = nn.Linear(n_features, n_classes, bias=False)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Outputs $o$ in [-1, 1]."""
        return F.normalize(x, dim=-1) @ F.normalize(self.prototypes.weight, dim=-1).T


class ContrastiveHead(nn.Module):
    """Projection of the contrastive branch: MLP with GELU, unit norm, unit-norm linear map, unit norm.

    Args:
        n_features: inputs d.
        widths: hidden widths and the bottleneck, 2048, 2048, 256 in the paper.
        n_outputs: outputs of the last map.
    """

    def __init__(self, n_features: int, widths: Sequence[int], n_outputs: int) -> None:
        super().__init__()
        layers = [nn.Linear(a, b) for a, b in zip([n_features, *widths[:-1]], widths, strict=True)]
        self.body = nn.Sequential(*[part for layer in layers for part in (layer, nn.GELU())][:-1])
        self.last = nn.Linear(widths[-1], n_outputs, bias=False)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n z"]:
        """Embeddings $z$ of unit norm."""
        bottleneck = F.normalize(self.body(x), dim=-1)
        return F.normalize(bottleneck @ F.normalize(self.last.weight, dim=-1).T, dim=-1)


class Branches(nn.Module):
    """Pseudo-label and contrastive branch over the output of a frozen trunk.

    Args:
        block: the pre-trained last block of the trunk; each branch trains a copy of its own.
        class_head: head of the pseudo-label branch.
        contrastive_head: head of the contrastive branch.
        is_shared: one copy for both heads instead, as in SimGCD.
    """

    def __init__(
        self, block: nn.Module, class_head: ClassHead, contrastive_head: ContrastiveHead, *, is_shared: bool = False
    ) -> None:
        super().__init__()
        self.contrastive_block = deepcopy(block)
        self.class_block = None if is_shared else deepcopy(block)
        self.class_head, self.contrastive_head = class_head, contrastive_head

    def features(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
        """Backbone features of the contrastive branch: what k-means sees."""
        return self.contrastive_block(x)

    def class_outputs(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n k"]:
        """Cosines of the pseudo-label branch."""
        block = self.contrastive_block if self.class_block is None else self.class_block
        return self.class_head(block(x))

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n o"]:
        """Class outputs and embeddings side by side, k + z columns."""
        features = self.contrastive_block(x)
        own = features if self.class_block is None else self.class_block(x)
        return torch.cat([self.class_head(own), self.contrastive_head(features)], -1)


class ClassBranch(nn.Module):
    """A branch with the cosine head alone: ORCA, or a pseudo-label branch that needs no contrastive one."""

    def __init__(self, block: nn.Module, head: ClassHead) -> None:
        super().__init__()
        self.block, self.head = deepcopy(block), head

    def features(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
        """Backbone features."""
        return self.block(x)

    def class_outputs(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n k"]:
        """Cosines."""
        return self.head(self.block(x))

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n o"]:
        """Cosines and features side by side, k + d columns."""
        features = self.block(x)
        return torch.cat([self.head(features), features], -1)


class PrototypeHead(nn.Module):
    r"""Projection and prototypes of OpenCon; the prototypes $\mu$ are unit vectors that get no gradient.

    Args:
        n_features: inputs d, also the hidden width.
        n_outputs: outputs z of the projection.
        n_classes: number of prototypes.
    """

    def __init__(self, n_features: int, n_outputs: int, n_classes: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(n_features, n_features), nn.Linear(n_features, n_outputs)
        self.prototypes = nn.Linear(n_outputs, n_classes, bias=False).requires_grad_(False)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n z"]:
        """Embeddings of unit norm."""
        return F.normalize(self.outer(F.relu(self.inner(x))), dim=-1)


class PrototypeBranch(nn.Module):
    """The branch of OpenCon: a block, a projection and prototypes."""

    def __init__(self, block: nn.Module, head: PrototypeHead) -> None:
        super().__init__()
        self.block, self.head = deepcopy(block), head

    def features(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
        """Backbone features."""
        return self.block(x)

    def class_outputs(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n k"]:
        """Cosines with the prototypes: their arg max is the nearest prototype."""
        return self.head.prototypes(self(x))

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n z"]:
        """Embeddings of unit norm."""
        return self.head(self.block(x))


@dataclass(frozen=True)
class Backbone:
    """Frozen trunk and pre-trained last block.

    Args:
        trunk: images to the inputs of the last block, without gradient.
        block: the last block.
        n_features: features d that the block returns.
    """

    trunk: Callable[[Tensor], Tensor]
    block: nn.Module
    n_features: int


class SimCLR(nn.Module):
    """Small trunk, last block and projection for pre-training; the trunk's output is standardised over the batch."""

    def __init__(self, n_inputs: int, hidden: int, n_features: int) -> None:
        super().__init__()
        self.trunk = MLP(n_inputs, [hidden], n_features)
        self.block = ResidualBlock(n_features)
        self.head = ContrastiveHead(n_features, [n_features, 32], 32)

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n z"]:
        """Embeddings of unit norm."""
        h = self.trunk(x)
        return self.head(self.block((h - h.mean(0)) / (h.std(0) + 1e-3)))


class FrozenTrunk(nn.Module):
    """A small trunk with the statistics of its training set: features of zero mean tell classes apart by cosine.

    Args:
        network: the trained trunk.
        images: its training set.
    """

    def __init__(self, network: nn.Module, images: Float[Tensor, "n c h w"]) -> None:
        super().__init__()
        self.network = network
        with torch.no_grad():
            h = network(images)
        self.mean, self.scale = h.mean(0), h.std(0) + 1e-3

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Inputs of the last block."""
        return (self.network(x) - self.mean) / self.scale


def pretrain(
    images: Float[Tensor, "n c h w"],
    subsets: Sequence[Int[Tensor, " _"]],
    views: Views,
    recipe: Recipe,
    *,
    hidden: int,
    n_features: int,
    temperature: float = 0.2,
    generators: Sequence[torch.Generator],
) -> list[Backbone]:
    """SimCLR without labels on each subset, all trunks side by side.

    Args:
        images: the pool.
        subsets: training images of each trunk.
        views: augmentation.
        recipe: budget.
        hidden: hidden width of the trunk.
        n_features: width of its output and of the last block.
        temperature: of the InfoNCE loss.
        generators: one per trunk: weights, order of images, views.
    """
    n_inputs, device = images[0].numel(), images.device
    stack = NetworkStack.build(lambda: SimCLR(n_inputs, hidden, n_features), generators)
    subsets = [subset.to(device) for subset in subsets]
    batches = minibatches(subsets, recipe.batch_size, recipe.n_steps, generators=generators)
    b = batches.shape[-1]
    alone = torch.zeros(len(stack), b, 1, device=device)  # only the other view attracts
    keep = torch.ones(len(stack), b, dtype=torch.bool, device=device)

    def loss_at(step: int) -> Float[Tensor, " s"]:
        both = zip(batches[step], generators, strict=True)
        x = torch.stack([views.random(images[index.repeat(2)], generator=g) for index, g in both])
        z = stack(x)
        return contrastive_loss(z, (similarities(z) / temperature).exp(), alone, keep, temperature)

    train(stack.parameters(), loss_at, recipe)
    backbones = []
    for index, subset in enumerate(subsets):
        network = stack.single(index).requires_grad_(False)
        trunk = FrozenTrunk(network.trunk, images[subset])  # type: ignore[arg-type]
        backbones.append(Backbone(trunk, network.block, n_features))  # type: ignore[arg-type]
    return backbones


def make_network(
    method: AnyMethod, backbone: Backbone, n_classes: int, settings: Settings, *, generator: torch.Generator
) -> nn.Module:
    """The network of a method, with the pre-trained block and heads drawn from `generator`; cosine heads come first."""
    d = backbone.n_features
    if isinstance(method, OpenCon):
        head = build(lambda: PrototypeHead(d, method.n_embedding, n_classes), generator=generator)
        start = torch.randn(n_classes, method.n_embedding, generator=generator, device=generator.device)
        network = PrototypeBranch(backbone.block, head).requires_grad_(True)
        network.head.prototypes.requires_grad_(False).weight.copy_(F.normalize(start, dim=-1))
        return network
    class_head = build(lambda: ClassHead(d, n_classes), generator=generator)
    if method.kind == "class branch":
        return ClassBranch(backbone.block, class_head).requires_grad_(True)
    contrastive_head = build(lambda: ContrastiveHead(d, settings.widths, settings.n_outputs), generator=generator)
    is_shared = method.kind == "shared branch"
    return Branches(backbone.block, class_head, contrastive_head, is_shared=is_shared).requires_grad_(True)
