r"""Residual networks for 32x32 images (He, Zhang, Ren and Sun, CVPR 2016, Section 4.2): ResNet-20, 32, 44, 56, 110."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class BasicBlock(nn.Module):
    r"""Residual block of two 3x3 convolutions with a shortcut free of parameters.

    Where the block halves the resolution and doubles the channels, $x'$ is every second pixel of $x$, padded with
    zero channels on both sides.

    Args:
        c_in: input channels.
        c_out: output channels.
        stride: 2 halves the resolution.

    Source: Section 4.2, identity shortcuts ("option A").
    """

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(c_out)
        self.stride, self.extra = stride, c_out - c_in

    def shortcut(self, x: Float[Tensor, "n c_in h w"]) -> Float[Tensor, "n c_out h2 w2"]:
        """The input, brought to the shape of the output."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))

    def forward(self, x: Float[Tensor, "n c_in h w"]) -> Float[Tensor, "n c_out h2 w2"]:
        """Residual branch plus shortcut."""
        residual = self.norm1(self.conv1(x)).relu()
        return (self.norm2(self.conv2(residual)) + self.shortcut(x)).relu()


class CifarResNet(nn.Module):
    r"""Three stages of $s$ blocks with 16, 32 and 64 channels at full, half and quarter resolution: $6s + 2$ layers.

    Args:
        n_layers: $6s + 2$; the paper has 20, 32, 44, 56 and 110.
        n_classes: outputs of the linear head; 0 leaves the 64 pooled features.
        n_channels: channels of the input.
        width: channels of the first stage; 16 in the paper.

    Raises:
        ValueError: if `n_layers` is not $6s + 2$.

    Source: Section 4.2; He initialisation of all convolutions and the head.
    """

    def __init__(self, n_layers: int = 32, n_classes: int = 10, *, n_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        if n_layers < 8 or (n_layers - 2) % 6:
            raise ValueError(f"n_layers must be 6s + 2 (20, 32, 44, 56, 110), got {n_layers}")
        per_stage = (n_layers - 2) // 6
        self.n_features = 4 * width
        self.stem = nn.Sequential(
            nn.Conv2d(n_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        blocks = []
        c_in = width
        for stage, c_out in enumerate((width, 2 * width, 4 * width)):
            for position in range(per_stage):
                blocks.append(BasicBlock(c_in, c_out, stride=2 if stage and not position else 1))
                c_in = c_out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(self.n_features, n_classes) if n_classes else nn.Identity()

    def reset_parameters(self, generator: torch.Generator) -> "CifarResNet":
        """Draw all weights anew from `generator`: He's normal law; biases zero. Returns the network."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        return self

    def features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        """Globally average-pooled activations of the last stage, $f = 64$ for the paper's width."""
        return self.blocks(self.stem(x)).mean(dim=(2, 3))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits, or features if the network has no head."""
        return self.head(self.features(x))


def resnet32(n_classes: int = 10) -> CifarResNet:
    """The 32-layer network, 0.46 million parameters."""
    return CifarResNet(32, n_classes)
