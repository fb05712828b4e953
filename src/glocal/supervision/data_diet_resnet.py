r"""Residual networks of ImageNet's widths with a stem for small images: ResNet-18 and ResNet-50 on CIFAR."""

from jaxtyping import Float
from torch import Tensor, nn


def convolution(c_in: int, c_out: int, side: int, stride: int = 1) -> nn.Sequential:
    """Convolution without bias that keeps the resolution up to its stride, followed by batch norm."""
    layer = nn.Conv2d(c_in, c_out, side, stride=stride, padding=side // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(c_out))


class Residual(nn.Module):
    r"""Residual block: two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1 that ends with four times the width.

    The shortcut is the identity, or a 1x1 convolution where the shape changes.

    Args:
        c_in: input channels.
        width: channels of the 3x3 convolutions.
        stride: 2 halves the resolution.
        is_bottleneck: which of the two kinds.
    """

    def __init__(self, c_in: int, width: int, stride: int, *, is_bottleneck: bool) -> None:
        super().__init__()
        if is_bottleneck:
            self.n_out = 4 * width
            parts = [
                convolution(c_in, width, 1),
                nn.ReLU(),
                convolution(width, width, 3, stride),
                nn.ReLU(),
                convolution(width, self.n_out, 1),
            ]
        else:
            self.n_out = width
            parts = [convolution(c_in, width, 3, stride), nn.ReLU(), convolution(width, width, 3)]
        self.branch = nn.Sequential(*parts)
        changes = stride != 1 or c_in != self.n_out
        self.shortcut = convolution(c_in, self.n_out, 1, stride) if changes else nn.Identity()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """Branch plus shortcut, rectified."""
        return (self.branch(x) + self.shortcut(x)).relu()


class CifarStemResNet(nn.Module):
    r"""ResNet-18 or ResNet-50 with a 3x3 stem of stride 1 and no max-pooling, for 32x32 images.

    Args:
        n_layers: 18 (11.2 million parameters) or 50 (23.5 million).
        n_classes: outputs.
        n_channels: channels of the images.

    Raises:
        ValueError: for another depth.

    Source: He, Zhang, Ren and Sun, CVPR 2016, Table 1, with the stem that is usual for CIFAR.
    """

    def __init__(self, n_layers: int = 18, n_classes: int = 10, *, n_channels: int = 3) -> None:
        super().__init__()
        depths = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
        if n_layers not in depths:
            raise ValueError(f"n_layers must be 18 or 50, got {n_layers}")
        blocks: list[nn.Module] = [convolution(n_channels, 64, 3), nn.ReLU()]
        c_in = 64
        for stage, depth in enumerate(depths[n_layers]):
            for position in range(depth):
                stride = 2 if stage and not position else 1
                block = Residual(c_in, 64 * 2**stage, stride, is_bottleneck=n_layers == 50)
                blocks.append(block)
                c_in = block.n_out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(c_in, n_classes)

    def features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        """Globally average-pooled activations of the last block."""
        return self.blocks(x).mean(dim=(2, 3))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits."""
        return self.head(self.features(x))
