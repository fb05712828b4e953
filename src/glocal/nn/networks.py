r"""Small classifiers, and initial weights that come from a generator instead of the global one.

n examples, d inputs, f features, k classes.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class MLP(nn.Module):
    r"""Multilayer perceptron with ReLU: hidden layers $h \leftarrow \max(0, Wh + b)$ and a linear head.

    Args:
        n_inputs: inputs $d$; images are flattened.
        hidden: widths of the hidden layers; none gives a linear classifier.
        n_classes: outputs of the head.
    """

    def __init__(self, n_inputs: int, hidden: Sequence[int], n_classes: int) -> None:
        super().__init__()
        widths = [n_inputs, *hidden]
        self.body = nn.Sequential(nn.Flatten())
        for n_in, n_out in pairwise(widths):
            self.body.append(nn.Linear(n_in, n_out)).append(nn.ReLU())
        self.head = nn.Linear(widths[-1], n_classes)

    def features(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n f"]:
        """Activations of the last hidden layer."""
        return self.body(x)

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n k"]:
        """Logits."""
        return self.head(self.features(x))


class ConvNet(nn.Module):
    r"""Blocks of a 3x3 convolution, ReLU and 2x2 max-pooling, then a linear head on the flattened map.

    Args:
        image_shape: channels, height and width of the images; sides are halved by every block, rounding down.
        channels: output channels of each block.
        n_classes: outputs of the head.

    Raises:
        ValueError: if pooling leaves no pixel.
    """

    def __init__(self, image_shape: tuple[int, int, int], channels: Sequence[int], n_classes: int) -> None:
        super().__init__()
        n_in, height, width = image_shape
        if min(height, width) >> len(channels) == 0:
            raise ValueError(f"{len(channels)} blocks halve a {height}x{width} image to nothing: use fewer channels")
        self.body = nn.Sequential()
        for n_out in channels:
            self.body.append(nn.Conv2d(n_in, n_out, 3, padding=1)).append(nn.ReLU()).append(nn.MaxPool2d(2))
            n_in, height, width = n_out, height // 2, width // 2
        self.body.append(nn.Flatten())
        self.head = nn.Linear(n_in * height * width, n_classes)

    def features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        """The flattened map of the last block."""
        return self.body(x)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits."""
        return self.head(self.features(x))


def build(make: Callable[[], Network], *, generator: torch.Generator) -> Network:
    r"""A network whose initial weights come from `generator`, on the generator's device.

    Weights and biases of linear and convolutional layers are uniform on $[-1/\sqrt{n}, 1/\sqrt{n}]$ with $n$ the
    fan-in, the default of PyTorch; layers without random weights take their own defaults.

    Args:
        make: builds the network, for example `lambda: MLP(64, [96, 96], 10)`.
        generator: source of the weights; the global generator is left alone.

    Raises:
        TypeError: if a layer has parameters that this function does not know how to draw.
    """
    with torch.device("meta"):
        network = make()
    network = network.to_empty(device=generator.device)
    for layer in network.modules():
        draw_layer(layer, generator)
    return network


def draw_layer(layer: nn.Module, generator: torch.Generator) -> None:
    """Initialise the parameters a layer holds itself, in place; see `build`."""
    if isinstance(layer, nn.Linear | nn.Conv2d):
        bound = 1 / math.sqrt(layer.weight[0].numel())
        for tensor in (layer.weight, layer.bias):
            if tensor is not None:
                nn.init.uniform_(tensor, -bound, bound, generator=generator)
    elif isinstance(layer, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm1d | nn.BatchNorm2d):
        layer.reset_parameters()
    elif any(True for _ in layer.parameters(recurse=False)):
        kind = type(layer).__name__
        raise TypeError(f"build does not know how to draw the parameters of {kind}: hold them in linear layers")
