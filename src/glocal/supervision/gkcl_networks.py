"""Networks of generative kernel continual learning: variational autoencoders and, for photographs, residual networks.

All take and return flat samples, have no buffers and hold their weights in linear, convolutional and norm layers, so
that seeds can be stacked. n samples, d values of a sample, z latent values.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from glocal.nn.networks import MLP

GROUPS = 4  # of the group norms, which replace batch norms


class VAE(nn.Module):
    """Variational autoencoder of two multilayer perceptrons, mirror images of each other.

    Args:
        n_values: d.
        hidden: widths of the encoder's hidden layers.
        n_latent: z.
    """

    def __init__(self, n_values: int, hidden: Sequence[int], n_latent: int) -> None:
        super().__init__()
        self.encoder = MLP(n_values, hidden, 2 * n_latent)
        self.decoder = MLP(n_latent, list(reversed(hidden)), n_values)

    def encode(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n _"]:
        """Mean and log variance of $q(z | x)$, side by side."""
        return self.encoder(x)

    def decode(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n d"]:
        """Logits of pixels, or means."""
        return self.decoder(z)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with group norms and a shortcut, a 1x1 convolution where the shape changes."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(GROUPS, c_out),
            nn.ReLU(),
            nn.Conv2d(c_out, c_out, 3, padding=1, bias=False),
            nn.GroupNorm(GROUPS, c_out),
        )
        is_same = stride == 1 and c_in == c_out
        self.shortcut = nn.Identity() if is_same else nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """Branch plus shortcut, rectified."""
        return (self.branch(x) + self.shortcut(x)).relu()


class ResNet18(nn.Module):
    """ResNet-18 for small pictures with group norms: four stages of two blocks, global pooling, a linear head.

    Args:
        image_shape: channels, height and width.
        width: channels of the first stage, a multiple of 4; 20 in the predecessor's code.
        n_outputs: outputs of the head.
    """

    def __init__(self, image_shape: tuple[int, int, int], width: int, n_outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Unflatten(1, image_shape),
            nn.Conv2d(image_shape[0], width, 3, padding=1, bias=False),
            nn.GroupNorm(GROUPS, width),
            nn.ReLU(),
        )
        c_in = width
        for stage in range(4):
            c_out = width * 2**stage
            self.body.append(ResidualBlock(c_in, c_out, 2 if stage else 1)).append(ResidualBlock(c_out, c_out, 1))
            c_in = c_out
        self.body.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
        self.head = nn.Linear(c_in, n_outputs)

    def features(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n f"]:
        """Pooled activations of the last stage, 8 times the width."""
        return self.body(x)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Outputs of the head."""
        return self.head(self.features(x))


class ConvVAE(nn.Module):
    """Autoencoder of photographs: a ResNet-18 encoder and a decoder of five doublings from one pixel.

    Args:
        image_shape: channels and 32 by 32 pixels.
        width: channels of the encoder's first stage; 64 gives 512 features.
        n_latent: z.

    Raises:
        ValueError: for other sizes of pictures.
    """

    def __init__(self, image_shape: tuple[int, int, int], width: int, n_latent: int) -> None:
        super().__init__()
        if image_shape[1:] != (32, 32):
            raise ValueError(f"the decoder doubles one pixel five times, to 32x32; got pictures of {image_shape[1:]}")
        self.encoder = ResNet18(image_shape, width, 2 * n_latent)
        channels = [n_latent, 256, 128, 64, 32]
        self.decoder = nn.Sequential(nn.Unflatten(1, (n_latent, 1, 1)))
        for c_in, c_out in pairwise(channels):
            self.decoder.append(nn.Upsample(scale_factor=2)).append(nn.Conv2d(c_in, c_out, 3, padding=1))
            self.decoder.append(nn.ReLU())
        self.decoder.append(nn.Upsample(scale_factor=2)).append(nn.Conv2d(channels[-1], image_shape[0], 3, padding=1))
        self.decoder.append(nn.Flatten())

    def encode(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n _"]:
        """Mean and log variance of $q(z | x)$, side by side."""
        return self.encoder(x)

    def decode(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n d"]:
        """Logits of pixels."""
        return self.decoder(z)


def make_classifier(shape: tuple[int, ...], hidden: Sequence[int], n_outputs: int, *, is_conv: bool) -> nn.Module:
    """The network that all methods share: its `features` feed the kernels, its head serves methods with task heads.

    Args:
        shape: of a sample.
        hidden: widths of a perceptron, or the single width of a ResNet-18.
        n_outputs: tasks times classes.
        is_conv: ResNet-18 instead of a perceptron.
    """
    if is_conv:
        return ResNet18((shape[0], shape[1], shape[2]), hidden[0], n_outputs)
    return MLP(math.prod(shape), hidden, n_outputs)


def make_vae(shape: tuple[int, ...], hidden: Sequence[int], n_latent: int, *, is_conv: bool) -> nn.Module:
    """An autoencoder for samples of a shape; `hidden` holds widths, or the single width of a ResNet-18."""
    if is_conv:
        return ConvVAE((shape[0], shape[1], shape[2]), hidden[0], n_latent)
    return VAE(math.prod(shape), hidden, n_latent)
