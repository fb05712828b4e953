r"""A vision transformer as frozen trunk and trainable last block: DINO weights through timm, or a random stand-in.

n images, p patches, t tokens, d features.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glocal.supervision.bacon_networks import Backbone


class ViTTrunk(nn.Module):
    """Everything of a vision transformer before its last block: patches, class token, positions, other blocks."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit
        self.blocks = nn.Sequential(*list(vit.blocks)[:-1])  # type: ignore[arg-type]

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n t d"]:
        """Tokens, class token first."""
        return self.blocks(self.vit.norm_pre(self.vit._pos_embed(self.vit.patch_embed(x))))  # type: ignore[operator]


class ViTLast(nn.Module):
    """Last block and final norm of a vision transformer; its feature is the class token."""

    def __init__(self, block: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.block, self.norm = block, norm

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n d"]:
        """Class token."""
        return self.norm(self.block(x))[:, 0]


class StandInBlock(nn.Module):
    """A pre-norm transformer block, one line for each half."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def attend(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        """Multi-head self-attention."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        return self.proj((weights @ value).transpose(1, 2).flatten(2))

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        """Tokens."""
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class StandIn(nn.Module):
    """A small transformer with random weights and the parts of timm's: for rehearsals, where nothing is downloaded."""

    def __init__(self, image_size: int, *, patch: int = 16, width: int = 96, n_heads: int = 3, depth: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + (image_size // patch) ** 2, width))
        self.blocks = nn.ModuleList([StandInBlock(width, n_heads) for _ in range(depth)])
        self.norm, self.norm_pre = nn.LayerNorm(width), nn.Identity()

    def patch_embed(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n p d"]:
        """Embedded patches."""
        return self.patch(x).flatten(2).mT

    def _pos_embed(self, x: Float[Tensor, "n p d"]) -> Float[Tensor, "n t d"]:
        return torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions


def vit_backbone(name: str, *, image_size: int = 224, device: str = "cpu") -> Backbone:
    """A vision transformer with DINO weights through timm, split before its last block.

    Args:
        name: a model of timm such as `vit_base_patch16_224.dino`, or `stand-in`, two random blocks for rehearsals.
        image_size: side of the input in pixels.
        device: where to put it.

    Raises:
        ImportError: if timm is not installed.
    """
    if name == "stand-in":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            vit: nn.Module = StandIn(image_size)
    else:
        try:
            import timm
        except ImportError:
            raise ImportError(
                f"trunk {name!r} needs timm, which is not installed: pip install -r requirements-full.txt, "
                "or use 'mlp' (small images) or 'stand-in' (rehearsals)"
            ) from None
        vit = timm.create_model(name, pretrained=True, num_classes=0, img_size=image_size)
        for module in vit.modules():
            if hasattr(module, "fused_attn"):
                setattr(module, "fused_attn", False)  # noqa: B010  the plain product is what vmap can batch
    vit = vit.to(device).eval().requires_grad_(False)
    last = ViTLast(vit.blocks[-1], vit.norm)  # type: ignore[index, arg-type]
    return Backbone(ViTTrunk(vit), last, last.norm.get_parameter("weight").numel())
