r"""LargeGT: attention over a fixed two-hop sample of tokens and over a codebook of the whole graph.

Dwivedi et al., *Graph Transformers for Large Graphs* (arXiv:2312.11109).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from glocal.graphs.largegt_global import Codebook, GlobalModule
from glocal.graphs.node_classification import seeded

MODES = ("local", "global", "full")


class WideAttention(nn.Module):
    r"""Multi-head attention whose $H$ heads each have the full width $d$, so that the output has width $Hd$.

    $$Y = W_o \big\Vert_h \mathrm{softmax}(Q_h K_h^\top / \sqrt d) V_h, \ Q_h, K_h, V_h \in \mathbb R^{T \times d}.$$

    Args:
        width: $d$, of the input and of every head.
        n_heads: $H$.

    Source: the local module; usual heads have width $d / H$.
    """

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads, self.width = n_heads, width
        self.query, self.key, self.value = (nn.Linear(width, n_heads * width) for _ in range(3))
        self.out = nn.Linear(n_heads * width, n_heads * width)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t hd"]:
        """All tokens attend to all tokens of their sequence."""
        q, k, v = (f(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v)  # scaled by d^(-1/2)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class ByteDropout(nn.Module):
    r"""Dropout that spends one random byte per entry; torch's own takes a fifth of the training time on a CPU.

    Args:
        p: probability of dropping an entry, rounded to a multiple of 1/256.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p must be in [0, 1), got {p}")
        self.threshold = round(256 * p)

    def forward(self, x: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
        """Entries kept with probability $1 - p$ and scaled by its inverse; the identity in evaluation mode."""
        if not self.training or not self.threshold:
            return x
        words = torch.empty(x.numel() // 8 + 1, dtype=torch.int64, device=x.device).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.threshold
        return x * (kept * (256 / (256 - self.threshold)))


class LocalModule(nn.Module):
    r"""One attention layer without a feed-forward part, read out by the target's token and the mean of the others.

    $$Z = W_{res} T + \mathrm{MHA}(\mathrm{LN}(T)), \quad O = \mathrm{LN}(Z), \quad
      h^{loc} = O_0 + \sum_{j \ge 1} \alpha_j O_j, \quad
      \alpha = \mathrm{softmax}_j(w^\top [O_0 \Vert O_j] + b).$$

    Args:
        width: $d$.
        n_heads: $H$.
        dropout: on the output of attention and again on $Z$.
        init_std: standard deviation of all initial weights, with zero biases; None for torch's default.

    Source: the local module; the official code has `init_std` 0.02 and `dropout` 0.3.
    """

    def __init__(self, width: int, n_heads: int, *, dropout: float = 0.3, init_std: float | None = 0.02) -> None:
        super().__init__()
        self.token = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.attention = WideAttention(width, n_heads)
        self.residual = nn.Linear(width, n_heads * width)
        self.out_norm = nn.LayerNorm(n_heads * width)
        self.readout = nn.Linear(2 * n_heads * width, 1)
        self.dropout = ByteDropout(dropout)
        if init_std is not None:
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=init_std)
                    nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b hd"]:
        """Representation of the node whose own token comes first."""
        tokens = self.token(x)
        z = self.dropout(self.residual(tokens) + self.dropout(self.attention(self.norm(tokens))))
        return target_readout(self.out_norm(z), self.readout)


def target_readout(outputs: Float[Tensor, "b t w"], score: nn.Linear) -> Float[Tensor, "b w"]:
    r"""$O_0 + \sum_{j \ge 1} \alpha_j O_j$ with $\alpha = \mathrm{softmax}_j(w^\top [O_0 \Vert O_j] + b)$.

    The linear map is applied to its two halves: $w^\top[O_0 \Vert O_j] = w_0^\top O_0 + w_1^\top O_j$. Its first part
    and $b$ are the same for every $j$ and cancel in the softmax, so they never receive a gradient.

    Args:
        outputs: $O$; the target is at position 0, and at least one other token follows.
        score: the map $(w, b)$ from width $2w$ to one number.
    """
    target, others = outputs[:, 0], outputs[:, 1:]
    for_target, for_other = score.weight[0].chunk(2)
    scores = others @ for_other + (target @ for_target)[:, None] + score.bias
    return target + torch.einsum("bt,btw->bw", scores.softmax(-1), others)


def head(n_inputs: int, width: int, n_heads: int, n_classes: int, dropout: float) -> nn.Sequential:
    """The classifier of all models of this chapter: widths $Hd$ and $d$ with batch norm, then the logits."""
    layers: list[nn.Module] = []
    for a, b in ((n_inputs, n_heads * width), (n_heads * width, width)):
        layers += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(width, n_classes))


class LargeGT(nn.Module):
    r"""Local attention over the sampled tokens, global attention over a codebook, or both, before one classifier.

    Args:
        n_features: $F$.
        n_classes: number of classes.
        n_nodes: $N$, for the table of assignments.
        conv_type: `"local"`, `"global"` or `"full"`.
        width: hidden width $d$.
        n_heads: $H$.
        global_dim: $g$.
        n_centroids: $M$.
        ff_dropout: in $f_{seq}$, $f_{in}$ and the classifier.
        attn_dropout: on the weights of the global attention; the local module has its own, 0.3.
        local_dropout: of the local module.
        init_std: of the local module's weights, None for torch's default.
        vq_decay: of the codebook.
        vq_init: start of the codebook.
        generator: source of all initial weights and of the codebook's start; its device is the model's. Dropout
            draws from torch's global generators.

    Source: the paper's method; defaults are those of its code.
    """

    def __init__(
        self,
        n_features: int,
        n_classes: int,
        n_nodes: int,
        *,
        conv_type: str = "full",
        width: int = 256,
        n_heads: int = 2,
        global_dim: int = 64,
        n_centroids: int = 4096,
        ff_dropout: float = 0.5,
        attn_dropout: float = 0.5,
        local_dropout: float = 0.3,
        init_std: float | None = 0.02,
        vq_decay: float = 0.99,
        vq_init: str = "data",
        generator: torch.Generator,
    ) -> None:
        if conv_type not in MODES:
            raise ValueError(f"conv_type must be one of {', '.join(MODES)}, got {conv_type!r}")
        super().__init__()
        with seeded(generator):
            self.f_seq = self.local = self.far = None
            if conv_type != "global":
                self.f_seq = nn.Sequential(
                    nn.Linear(n_features, width), nn.ReLU(), ByteDropout(ff_dropout), nn.Linear(width, width)
                )
                self.local = LocalModule(width, n_heads, dropout=local_dropout, init_std=init_std)
            n_inputs = n_heads * width * (2 if conv_type == "full" else 1)
            self.head = head(n_inputs, width, n_heads, n_classes, ff_dropout)
            if conv_type != "local":
                codebook = Codebook(
                    n_nodes, n_centroids, 2 * global_dim, decay=vq_decay, vq_init=vq_init, generator=generator
                )
                self.far = GlobalModule(
                    n_features, width, n_heads, global_dim, codebook, dropout=ff_dropout, attn_dropout=attn_dropout
                )
        self.to(generator.device)

    def forward(
        self,
        tokens: Float[Tensor, "b t f"],
        encoding: Float[Tensor, "b g"],
        nodes: Int[Tensor, " b"],
        memory: Float[Tensor, "n w"] | None = None,
    ) -> Float[Tensor, "b k"]:
        """Logits of a batch of target nodes.

        Args:
            tokens: the target's own features first, then those of its sample.
            encoding: structural encoding of each target; unused in mode `"local"`.
            nodes: number of each target, for the table of assignments.
            memory: queries of all nodes, for exact global attention in place of the codebook.
        """
        parts = []
        if self.f_seq is not None and self.local is not None:
            parts.append(self.local(self.f_seq(tokens)))
        if self.far is not None:
            parts.append(self.far(tokens[:, 0], encoding, nodes, memory))
        logits: Tensor = self.head(torch.cat(parts, dim=-1))
        return logits
