r"""Training many networks on subsets of one data set, stacked where possible, singly where batch norm forbids it.

s networks, n examples, b examples per batch, k classes.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from glocal.nn.networks import MLP, ConvNet, build, draw_layer
from glocal.nn.stack import NetworkStack, Weights
from glocal.nn.training import Recipe, minibatches, train
from glocal.supervision.data_diet_dense import dense_logits, fit_dense, is_dense
from glocal.supervision.data_diet_resnet import CifarStemResNet

ARCHITECTURES = ("mlp", "wide", "cnn", "resnet18", "resnet50")
Watch = Callable[[Tensor, Tensor], None]


class ModuleStack(NetworkStack):
    """Networks with buffers, such as the running statistics of batch norm, behind the interface of `NetworkStack`.

    Each network does its own forward pass; the sum of their losses still trains each of them on its own loss alone.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.modules = [network.eval() for network in networks]
        self.network = self.modules[0]

    def __len__(self) -> int:
        """Number of networks."""
        return len(self.modules)

    def parameters(self) -> list[Tensor]:
        """The weights of all networks, one after the other."""
        return [p for module in self.modules for p in module.parameters()]

    def __call__(
        self, x: Tensor, *, method: str = "forward", weights: Weights | None = None
    ) -> Float[Tensor, "s n *_"]:
        """Outputs of all networks, see `NetworkStack`; `weights` replaces weights and buffers and wants `forward`."""
        if len(x) not in (1, len(self)):
            raise ValueError(f"x must lead with an axis of 1 or {len(self)} networks, got shape {tuple(x.shape)}")
        outputs = []
        for k, module in enumerate(self.modules):
            part = x[0] if len(x) == 1 else x[k]
            if weights is None:
                outputs.append(getattr(module, method)(part))
            else:
                outputs.append(functional_call(module, {name: w[k] for name, w in weights.items()}, (part,)))
        return torch.stack(outputs)

    def state(self) -> Weights:
        """A detached copy of weights and buffers, stacked; counters of batches are left out."""
        states = [module.state_dict() for module in self.modules]
        names = [name for name, tensor in states[0].items() if tensor.is_floating_point()]
        return {name: torch.stack([state[name].detach().clone() for state in states]) for name in names}

    def load(self, state: Weights) -> "ModuleStack":
        """Overwrite weights and buffers. Returns the stack."""
        for k, module in enumerate(self.modules):
            module.load_state_dict({name: tensor[k] for name, tensor in state.items()}, strict=False)
        return self

    def select(self, index: Sequence[int]) -> "ModuleStack":
        """A new stack of copies of the networks at `index`; an index may repeat."""
        return ModuleStack([deepcopy(self.modules[k]) for k in index])

    def single(self, index: int) -> nn.Module:
        """The network itself, in evaluation mode."""
        return self.modules[index]

    def set_training(self, is_training: bool) -> None:
        """Switch batch norm of all networks between batch and running statistics."""
        for module in self.modules:
            module.train(is_training)


def architecture(
    name: str, shape: Sequence[int], n_classes: int, hidden: Sequence[int] = (96, 96)
) -> Callable[[], nn.Module]:
    """Builder of one network.

    Args:
        name: `mlp` (layers `hidden`), `wide` (one hidden layer of 256), `cnn` (8 and 16 channels), or a residual
            network with batch norm for images, `resnet18` or `resnet50`.
        shape: shape of one input; (channels, height, width) for images.
        n_classes: outputs.
        hidden: widths of `mlp`.

    Raises:
        ValueError: for an unknown name, or an image network for inputs that are no images.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"arch must be one of {', '.join(ARCHITECTURES)}, got {name!r}")
    if name in ("mlp", "wide"):
        n_inputs = torch.Size(shape).numel()
        return lambda: MLP(n_inputs, list(hidden) if name == "mlp" else [256], n_classes)
    if len(shape) != 3:
        raise ValueError(f"{name} needs images of shape (channels, height, width), got {tuple(shape)}: use mlp or wide")
    channels, height, width = shape
    if name == "cnn":
        return lambda: ConvNet((channels, height, width), [8, 16], n_classes)
    n_layers = 18 if name == "resnet18" else 50
    return lambda: CifarStemResNet(n_layers, n_classes, n_channels=channels)


def build_stack(make: Callable[[], nn.Module], generators: Sequence[torch.Generator]) -> NetworkStack:
    """One network per generator: a `NetworkStack` if that is possible, a `ModuleStack` if networks have buffers."""
    networks = [build(make, generator=generators[0])]
    for generator in generators[1:]:  # a copy with weights of its own is quicker than building each from nothing
        networks.append(deepcopy(networks[0]))
        for layer in networks[-1].modules():
            draw_layer(layer, generator)
    has_buffers = any(True for _ in networks[0].buffers())
    return ModuleStack(networks) if has_buffers else NetworkStack(networks)


def take(x: Tensor, index: Int[Tensor, "s b"]) -> Tensor:
    """`x[index]`, several times faster for short rows."""
    return x.index_select(0, index.flatten()).unflatten(0, index.shape)


def fit(
    stack: NetworkStack,
    x: Float[Tensor, "n ..."],
    labels: Int[Tensor, " n"],
    batches: Int[Tensor, "n_steps s b"],
    recipe: Recipe,
    *,
    augment: Callable[[Tensor], Tensor] | None = None,
    watch: Watch | None = None,
    after_step: Callable[[int], None] | None = None,
    precision: str = "float32",
) -> Float[Tensor, "n_steps s"]:
    """Train each network of a stack with cross-entropy on its own sequence of batches, in place.

    Args:
        stack: the networks.
        x: all examples.
        labels: their classes.
        batches: indices into `x` for each update and network, from `minibatches`; the number of updates is theirs,
            whatever the size of the subsets.
        recipe: optimiser and schedule; its `n_steps` must be that of `batches`.
        augment: changes inputs of shape [s * b, ...] at random.
        watch: receives indices and logits of each batch before the step, in training mode.
        after_step: see `glocal.nn.training.train`; called in evaluation mode.
        precision: `bfloat16` runs the forward pass under autocast on a GPU. On a CPU it means float32, since most
            processors only emulate bfloat16, ten times slower.

    Returns:
        Training loss of each network before each update.

    Raises:
        ValueError: if batches and recipe disagree about the number of steps, or for an unknown precision.
    """
    if len(batches) != recipe.n_steps:
        raise ValueError(f"batches must hold the recipe's {recipe.n_steps} steps, got {len(batches)}")
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision must be float32 or bfloat16, got {precision!r}")

    def batch_at(step: int) -> tuple[Tensor, Tensor]:
        index = batches[step]
        inputs = take(x, index)
        if augment is not None:
            inputs = augment(inputs.flatten(0, 1)).reshape(inputs.shape)
        return inputs, take(labels, index)

    def watch_step(step: int, logits: Tensor) -> None:
        if watch is not None:
            watch(batches[step], logits.detach())

    is_mixed = precision == "bfloat16" and x.device.type != "cpu"
    if is_dense(stack) and precision == "float32" and recipe.optimizer == "sgd":
        return fit_dense(stack, batch_at, recipe, watch=watch_step, after_step=after_step)

    def switch(is_training: bool) -> None:
        if isinstance(stack, ModuleStack):
            stack.set_training(is_training)

    def loss_at(step: int) -> Tensor:
        inputs, targets = batch_at(step)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=is_mixed):
            logits = stack(inputs).float()
        watch_step(step, logits)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return losses.reshape(targets.shape).mean(1)

    def finish_step(step: int) -> None:
        if after_step is not None:
            switch(False)
            after_step(step)
            switch(True)

    switch(True)
    history = train(stack.parameters(), loss_at, recipe, after_step=finish_step)
    switch(False)
    return history


def truncated(recipe: Recipe, n_steps: int) -> Recipe:
    """The first `n_steps` steps of a training whose learning rate is constant or falls in steps.

    Raises:
        ValueError: for a cosine, or more steps than the training has.
    """
    if recipe.schedule == "cosine" or not 1 <= n_steps <= recipe.n_steps:
        raise ValueError(
            f"a prefix needs a constant or stepwise schedule and 1 to {recipe.n_steps} steps, "
            f"got {recipe.schedule!r} and {n_steps}"
        )
    stretch = recipe.n_steps / n_steps
    return replace(recipe, n_steps=n_steps, milestones=tuple(m * stretch for m in recipe.milestones))


def batches_for(
    subsets: Sequence[Int[Tensor, " _"]], recipe: Recipe, *, generators: Sequence[torch.Generator]
) -> Int[Tensor, "n_steps s b"]:
    """Batches of a whole training: the same number of steps for a subset of any size (see `minibatches`)."""
    return minibatches(subsets, recipe.batch_size, recipe.n_steps, generators=generators)


@torch.no_grad()
def logits_on(
    stack: NetworkStack, x: Float[Tensor, "n ..."], index: Int[Tensor, "s q"], *, batch_size: int = 250
) -> Float[Tensor, "s q k"]:
    """Outputs of every network on its own examples `index`, in evaluation mode."""
    outputs = partial(dense_logits, stack) if is_dense(stack) else stack
    return torch.cat([outputs(take(x, part)) for part in index.split(batch_size, dim=1)], dim=1)


def crop_and_flip(
    images: Float[Tensor, "n c h w"], *, generator: torch.Generator, margin: int = 4
) -> Float[Tensor, "n c h w"]:
    """Random crop after reflection padding by `margin` pixels, then a horizontal flip with probability one half.

    Source: augmentation of the released code.
    """
    n, _, height, width = images.shape
    padded = F.pad(images, (margin,) * 4, mode="reflect")
    draw = torch.randint(2 * margin + 1, (2, n, 1), generator=generator, device=generator.device)
    rows = (draw[0] + torch.arange(height, device=draw.device)).to(images.device)
    columns = draw[1] + torch.arange(width, device=draw.device)
    is_flipped = torch.rand(n, 1, generator=generator, device=generator.device) < 0.5
    columns = torch.where(is_flipped, columns.flip(1), columns).to(images.device)
    each = torch.arange(n, device=images.device)[:, None, None]
    return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
