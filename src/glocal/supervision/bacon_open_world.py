r"""ORCA and OpenCon: the parts of two open-world baselines that BaCon does not have.

ORCA (Cao, Brbic, Leskovec, ICLR 2022, arXiv:2102.03526) is a classifier with cosine outputs: cross-entropy with a
margin that depends on its uncertainty, a pairwise objective, and the pull towards uniform predictions. OpenCon (Sun and
Li, TMLR 2023, arXiv:2208.02764) is contrastive, with prototypes of all classes as moving averages. Labels as in
`bacon`: -1 means unlabelled, and classes from `n_known` on are novel.

b images per batch, k classes, d features; `s` as in `bacon`.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glocal.supervision import bacon


def uncertainty(outputs: Float[Tensor, "*s n k"], tau: float) -> Float[Tensor, "*s"]:
    r"""Mean uncertainty of ORCA, $\bar u = \frac1n\sum_i(1 - \max_c p_{ic})$ with $p = \mathrm{softmax}(o/\tau)$.

    Args:
        outputs: cosines $o$ of the unlabelled training images.
        tau: temperature, the inverse of the scale $s = 10$ of the paper.

    Source: supervised objective with uncertainty adaptive margin. Without gradient.
    """
    return 1 - (outputs.detach() / tau).softmax(-1).amax(-1).mean(-1)


def margin_cross_entropy(
    outputs: Float[Tensor, "*s v b k"], labels: Int[Tensor, "*s b"], margin: Float[Tensor, "*s"], tau: float
) -> Float[Tensor, "*s"]:
    r"""Cross-entropy on the labelled rows with $\bar u$ added to the cosine of the own class,

    $$-\log\frac{e^{(o_y + \bar u)/\tau}}{e^{(o_y + \bar u)/\tau} + \sum_{c \ne y}e^{o_c/\tau}}.$$

    While the network is unsure of unlabelled images, known classes look learnt already and grow slowly.

    Args:
        outputs: cosines $o$ in v views.
        labels: classes, -1 for unlabelled images.
        margin: $\bar u$, see `uncertainty`.
        tau: temperature.

    Source: supervised objective with uncertainty adaptive margin; the official code caps $\bar u$ at 0.5.
    """
    own = F.one_hot(labels.clamp(min=0), outputs.shape[-1]).to(outputs.dtype)[..., None, :, :]
    return bacon.known_cross_entropy(outputs + margin[..., None, None, None] * own, labels, tau)


@torch.no_grad()
def pair_positives(
    features: Float[Tensor, "*s b d"], labels: Int[Tensor, "*s b"], uniforms: Float[Tensor, "*s b b"]
) -> Int[Tensor, "*s b"]:
    """The image that ORCA pairs each image of a batch with; no gradient reaches the features.

    A labelled image is paired with a random other one of its class, or with itself if there is none; an unlabelled one
    with its nearest neighbour by cosine, labelled or not.

    Args:
        features: of one view.
        labels: classes, -1 for unlabelled images.
        uniforms: random numbers, the largest among the images of the class wins.

    Source: pairwise objective.
    """
    itself = torch.eye(features.shape[-2], dtype=torch.bool, device=features.device)
    nearest = bacon.similarities(F.normalize(features, dim=-1)).argmax(-1)
    is_mate = labels[..., :, None] == labels[..., None, :]
    mate = uniforms.masked_fill(~is_mate, -1.0).masked_fill(itself, -0.5).argmax(-1)  # itself before a stranger
    return torch.where(labels == bacon.UNLABELLED, nearest, mate)


def pairwise_loss(
    probs: Float[Tensor, "*s b k"], other_probs: Float[Tensor, "*s b k"], positives: Int[Tensor, "*s b"]
) -> Float[Tensor, "*s"]:
    r"""Binary cross-entropy of positive pairs, $-\frac1b\sum_i\log\langle p_i, p'_{j(i)}\rangle$.

    It is zero exactly if both sides of every pair are certain of the same class.

    Args:
        probs: class distributions $p$ of one view.
        other_probs: $p'$, those of the other view.
        positives: $j(i)$, see `pair_positives`.

    Source: pairwise objective.
    """
    partners = other_probs.gather(-2, positives[..., None].expand_as(other_probs))
    return -(probs * partners).sum(-1).clamp(min=1e-12).log().mean(-1)


def standardize(cosines: Float[Tensor, "*s b k"]) -> Float[Tensor, "*s b k"]:
    """Cosines with the prototypes, shifted and scaled to mean 0 and variance 1 over the classes of each image."""
    return (cosines - cosines.mean(-1, keepdim=True)) / cosines.std(-1, keepdim=True)


def novel_rows(scores: Float[Tensor, "*s b"], labels: Int[Tensor, "*s b"], known_share: float) -> Bool[Tensor, "*s b"]:
    """Images that OpenCon takes as novel: unlabelled, and their score is below a quantile of the labelled ones.

    Args:
        scores: similarity with the nearest known prototype.
        labels: classes, -1 for unlabelled images.
        known_share: share of the labelled images that lie above the threshold; between order statistics it is
            interpolated.

    Returns:
        A mask, all false for a batch without labelled images.

    Source: the official code, where the percentile is 100 times `known_share`.
    """
    is_labelled = labels != bacon.UNLABELLED
    n_labelled = is_labelled.sum(-1, keepdim=True)
    ordered = scores.detach().masked_fill(~is_labelled, torch.inf).sort(-1).values
    place = (1 - known_share) * (n_labelled - 1).clamp(min=0)
    low, high = place.floor().long(), place.ceil().long()
    below, above = ordered.gather(-1, low), ordered.gather(-1, high)
    threshold = torch.where(n_labelled > 0, below + (above - below).nan_to_num() * (place - low), -torch.inf)
    return ~is_labelled & (scores.detach() < threshold)


def composition_divergence(
    mean_probs: Float[Tensor, "*s k"], n_known: int, labelled_share: float
) -> Float[Tensor, "*s"]:
    r"""$\mathrm{KL}(\bar p\,\|\,q)$ between the mean prediction on unlabelled images and their expected composition.

    With classes of equal size, of which the known ones miss their labelled share: $q$ is proportional to $1 - r$ for
    known and to 1 for novel classes.

    Args:
        mean_probs: $\bar p$.
        n_known: number of known classes.
        labelled_share: $r$.

    Source: the official code.
    """
    target = torch.ones_like(mean_probs)
    target[..., :n_known] = 1 - labelled_share
    probs = mean_probs.clamp(min=1e-5)
    return (probs * (probs / (target / target.sum(-1, keepdim=True))).log()).sum(-1)


@torch.no_grad()
def moved_prototypes(
    prototypes: Float[Tensor, "*s k d"], z: Float[Tensor, "*s b d"], classes: Int[Tensor, "*s b"], momentum: float
) -> Float[Tensor, "*s k d"]:
    r"""Prototypes after one batch: $\mu_c \leftarrow (\gamma\mu_c + (1 - \gamma)z)/\lVert\cdot\rVert$, image by image.

    The images of a class take their turns in the order of the batch, all classes at once.

    Args:
        prototypes: unit vectors $\mu$.
        z: embeddings.
        classes: the class whose prototype an image moves, -1 for none.
        momentum: $\gamma$.

    Source: the official code, `update_prototype_lazy`.
    """
    is_mine = classes[..., None] == torch.arange(prototypes.shape[-2], device=z.device)
    turn = is_mine.cumsum(-2) * is_mine  # 1 for the first image of a class
    turns = torch.arange(1, int(turn.max()) + 1, device=z.device).reshape(-1, *[1] * turn.ndim)
    now = (turn == turns).mT.to(z.dtype)  # at each turn at most one image per class
    has_turn = now.sum(-1, keepdim=True)
    for stay, step in zip(1 - (1 - momentum) * has_turn, (1 - momentum) * now @ z, strict=True):
        moved = stay * prototypes + step
        prototypes = moved / moved.norm(dim=-1, keepdim=True)
    return prototypes
