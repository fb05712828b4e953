"""Token-selection problems: random tokens and image patches (Tarzanagh et al. 2023, arXiv:2308.16898)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from glocal.data.types import ImageData


@dataclass(frozen=True)
class TokenData:
    r"""Problems in float64: tokens $X_i$ (rows $x_{it}$), queries $z_i$ and labels $Y_i = \pm1$."""

    tokens: Float[Tensor, "runs n tokens d"]
    queries: Float[Tensor, "runs n d"]
    labels: Float[Tensor, "runs n"]

    def __len__(self) -> int:
        return len(self.tokens)

    def subset(self, index: Int[Tensor, " m"]) -> "TokenData":
        """The problems at `index`, in that order."""
        return TokenData(self.tokens[index], self.queries[index], self.labels[index])

    def to(self, device: str | torch.device) -> "TokenData":
        """The same problems on `device`."""
        return TokenData(self.tokens.to(device), self.queries.to(device), self.labels.to(device))


def _unit_rows(*size: int, generator: torch.Generator) -> Tensor:
    """Gaussian directions: rows uniform on the unit sphere."""
    x = torch.randn(size, generator=generator, dtype=torch.float64, device=generator.device)
    return x / x.norm(dim=-1, keepdim=True)


def random_problems(
    runs: int,
    n: int,
    n_tokens: int,
    d: int,
    *,
    generator: torch.Generator,
    is_cross_attention: bool = True,
) -> TokenData:
    r"""The official synthetic problems: tokens and queries uniform on the sphere, labels fair coins.

    Args:
        runs: number of independent problems.
        n: examples per problem.
        n_tokens: tokens per example, $T$.
        d: features of a token.
        generator: source of randomness; its device is that of the problems.
        is_cross_attention: independent queries; otherwise self-attention, $z_i = x_{i1}$.

    Source: official repository, `data_generator` of the local-convergence notebook.
    """
    tokens = _unit_rows(runs, n, n_tokens, d, generator=generator)
    queries = _unit_rows(runs, n, d, generator=generator) if is_cross_attention else tokens[:, :, 0].clone()
    coins = torch.rand((runs, n), generator=generator, device=generator.device) < 0.5
    return TokenData(tokens, queries, 2 * coins.to(torch.float64) - 1)


def random_directions(runs: int, d: int, *, generator: torch.Generator) -> Float[Tensor, "runs d"]:
    """Unit vectors $v$ of the official linear heads."""
    return _unit_rows(runs, d, generator=generator)


def random_hidden_weights(runs: int, d: int, *, generator: torch.Generator) -> Float[Tensor, "runs d d"]:
    r"""Gaussian first-layer weights $V$ of the official ReLU heads, scaled to $\lVert V\rVert_F = 1$."""
    x = torch.randn((runs, d, d), generator=generator, dtype=torch.float64, device=generator.device)
    return x / x.norm(dim=(-2, -1), keepdim=True)


def patch_problems(
    data: ImageData,
    runs: int,
    *,
    classes: tuple[int, int],
    n_per_class: int,
    d: int,
    generator: torch.Generator,
    patch: int = 12,
    stride: int = 8,
) -> tuple[TokenData, Float[Tensor, "runs d"]]:
    r"""Problems made of real tokens: overlapping patches of images of two classes.

    Patches are projected on their first `d` principal components and normalised to length one. The query of
    an image is its mean token, the label says which of the two classes it shows, and the head $v$ is the unit
    normal of a logistic regression of the label on the mean token, fitted on all images of both classes. Images
    in which two patches coincide (blank corners) are left out: no attention can separate equal tokens.

    Args:
        data: images; 28 x 28 with the default patches gives $T = 9$.
        runs: number of problems.
        classes: the two classes; the first has label $+1$.
        n_per_class: images per class and problem, drawn without replacement within a problem.
        d: principal components kept.
        generator: draws the images.
        patch: side of a patch, in pixels.
        stride: distance of neighbouring patches, in pixels.

    Returns:
        The problems and their common head, repeated for every run.

    Raises:
        ValueError: if a class has fewer than `n_per_class` usable images, or a patch fewer than `d` pixels.
    """
    pixels = patch * patch * data.images.shape[1]
    if d > pixels:
        raise ValueError(f"d must be at most {pixels}, the pixels of a patch, got {d}: use larger patches")
    chosen = data.subset(torch.isin(data.labels, torch.tensor(classes)).nonzero().squeeze(1))
    patches = torch.nn.functional.unfold(chosen.images.double(), patch, stride=stride).mT  # images x T x pixels
    patches = patches - patches.mean((0, 1))
    flat = patches.reshape(-1, patches.shape[-1])
    _, directions = torch.linalg.eigh(flat.mT @ flat)  # ascending eigenvalues
    tokens = torch.nn.functional.normalize(patches @ directions[:, -d:], dim=-1)
    gaps = torch.cdist(tokens, tokens) + 2 * torch.eye(tokens.shape[1], dtype=tokens.dtype)
    is_usable = gaps.amin((1, 2)) > 1e-3
    labels = 2.0 * (chosen.labels == classes[0]).double() - 1
    means = tokens.mean(1)
    regression = LogisticRegression(max_iter=1000).fit(means.numpy(), labels.numpy())
    v = torch.nn.functional.normalize(torch.as_tensor(regression.coef_[0]), dim=0)
    index = torch.cat([_draws(is_usable & (labels == side), runs, n_per_class, generator) for side in (1, -1)], 1)
    return TokenData(tokens[index], means[index], labels[index]), v.expand(runs, -1).clone()


def _draws(is_member: Tensor, runs: int, size: int, generator: torch.Generator) -> Int[Tensor, "runs size"]:
    """For each run, `size` distinct members."""
    members = is_member.nonzero().squeeze(1)
    if len(members) < size:
        raise ValueError(
            f"every class needs at least {size} images with distinct patches, got {len(members)}: "
            "lower n_per_class or choose other classes"
        )
    keys = torch.rand((runs, len(members)), generator=generator)
    return members[keys.argsort(1)[:, :size]]
