r"""The losses of one update, for networks of one kind side by side: BaCon and its relatives, ORCA, OpenCon.

s networks, b images per batch, r = 2b rows of two views, k classes, d features, z outputs of a projection.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from glocal.nn.stack import NetworkStack
from glocal.supervision import bacon
from glocal.supervision import bacon_open_world as open_world
from glocal.supervision.bacon_methods import AnyMethod, Method, OpenCon, Orca, Settings


@dataclass(frozen=True)
class Batch:
    """What an update knows beside the images.

    Args:
        given: labels, -1 for unlabelled images.
        counts: current estimate of the class sizes, for BaCon.
        margins: mean uncertainty of the network, for ORCA.
        resampling: uniform random numbers of the re-sampling, see `bacon.keep_confident`.
        mates: uniform random numbers that pair labelled images, see `bacon_open_world.pair_positives`.
        epoch: current epoch.
    """

    given: Int[Tensor, "s b"]
    counts: Float[Tensor, "s k"]
    margins: Float[Tensor, " s"]
    resampling: Float[Tensor, "s b k"]
    mates: Float[Tensor, "s b b"]
    epoch: int

    def select(self, rows: slice) -> "Batch":
        """The same update for some of the networks."""
        given, counts, margins = self.given[rows], self.counts[rows], self.margins[rows]
        return Batch(given, counts, margins, self.resampling[rows], self.mates[rows], self.epoch)


def each(methods: Sequence[AnyMethod], name: str, like: Tensor) -> Float[Tensor, " s"]:
    """One setting of every method."""
    return torch.tensor([float(getattr(method, name)) for method in methods], device=like.device, dtype=like.dtype)


def pseudo_label_loss(
    outputs: Float[Tensor, "s 2 b k"], batch: Batch, methods: Sequence[Method], settings: Settings
) -> Float[Tensor, " s"]:
    r"""Loss of the pseudo-label branch, $L_{ce} = (1 - \lambda)(L_{dis} + L_{reg}) + \lambda L_{cls}$.

    Args:
        outputs: cosines with the prototypes for both views.
        batch: labels and class sizes.
        methods: one per network.
        settings: shared settings.
    """
    lam, tau = settings.lam, settings.tau
    tau_teacher = bacon.teacher_temperature(float(batch.epoch), warmup=settings.teacher_epochs)
    distilled = bacon.self_distillation(outputs, tau, tau_teacher)
    mean_probs = (outputs / tau).softmax(-1).mean((-3, -2))
    regular = bacon.prior_regularizer(mean_probs, batch.counts, each(methods, "power", outputs))
    return (1 - lam) * (distilled + regular) + lam * bacon.known_cross_entropy(outputs, batch.given, tau)


def contrastive_branch_loss(
    outputs: Float[Tensor, "s 2 b k"],
    z: Float[Tensor, "s 2*b z"],
    batch: Batch,
    methods: Sequence[Method],
    settings: Settings,
) -> Float[Tensor, " s"]:
    r"""Loss of the contrastive branch, $L_{cl} = (1 - \lambda)L_{nce} + \frac\lambda2L_{sup} + \frac\lambda2L_{soft}$.

    Before the warm-up is over, $L_{cl} = (1 - \lambda)L_{nce} + \lambda L_{sup}$. The class outputs get no gradient.

    Args:
        outputs: cosines of the pseudo-label branch for both views.
        z: embeddings, rows [view 1; view 2].
        batch: labels, class sizes and random numbers.
        methods: one per network.
        settings: shared settings.
    """
    lam, given, counts = settings.lam, batch.given, batch.counts
    similarity = bacon.similarities(z)
    kernel = (similarity / settings.tau_con).exp()
    alone, everyone = torch.zeros(*given.shape, 1, device=z.device), torch.ones_like(given, dtype=torch.bool)
    nce = bacon.contrastive_loss(z, (similarity / settings.tau_nce).exp(), alone, everyone, settings.tau_nce)
    onehot = F.one_hot(given.clamp(min=0), counts.shape[-1]).to(z.dtype)
    sup = bacon.contrastive_loss(z, kernel, onehot, given != bacon.UNLABELLED, settings.tau_con)
    has_soft = each(methods, "has_soft", z) * float(batch.epoch >= settings.warmup)
    loss = (1 - lam) * nce + lam * (1 - has_soft / 2) * sup
    if bool(has_soft.any()):
        soft = bacon.soft_labels(outputs, counts, settings.tau, each(methods, "tau_adj", z))
        rates = bacon.keep_rates(given, counts, each(methods, "alpha", z), each(methods, "beta", z))
        keep = bacon.keep_confident(soft, given, rates, batch.resampling)
        loss = loss + lam / 2 * has_soft * bacon.contrastive_loss(z, kernel, soft, keep, settings.tau_con)
    return loss


def orca_loss(
    outputs: Float[Tensor, "s 2 b k"],
    features: Float[Tensor, "s 2 b d"],
    batch: Batch,
    methods: Sequence[Orca],
    settings: Settings,
) -> Float[Tensor, " s"]:
    r"""Loss of ORCA: cross-entropy with margin, pairs, and $\mathrm{KL}(\bar p\,\|\,\mathrm{uniform})$.

    View 1 is classified and looks for neighbours, view 2 has the partners of the pairs.

    Args:
        outputs: cosines with the prototypes for both views.
        features: of the backbone; no gradient reaches them from here.
        batch: labels, margins and random numbers.
        methods: one per network.
        settings: shared settings.
    """
    margins = torch.minimum(batch.margins, each(methods, "margin_cap", outputs))
    supervised = open_world.margin_cross_entropy(outputs[:, :1], batch.given, margins, settings.tau)
    positives = open_world.pair_positives(features[:, 0], batch.given, batch.mates)
    probs = (outputs / settings.tau).softmax(-1)
    pairs = open_world.pairwise_loss(probs[:, 0], probs[:, 1], positives)
    ones = torch.ones_like(batch.counts)
    uniform = bacon.prior_regularizer(probs[:, 0].mean(-2), ones, torch.zeros_like(margins))
    return supervised + each(methods, "pair_weight", pairs) * pairs + each(methods, "uniform_weight", pairs) * uniform


def open_con_loss(
    z: Float[Tensor, "s r z"],
    prototypes: Float[Tensor, "s k z"],
    batch: Batch,
    methods: Sequence[OpenCon],
    n_known: int,
) -> tuple[Float[Tensor, " s"], Int[Tensor, "s b"]]:
    r"""Loss of OpenCon, and the class whose prototype each image moves.

    SupCon on labelled images, InfoNCE on unlabelled ones, SupCon with the nearest prototype as label on those taken as
    novel, each among its own images only; and the pull of $\bar p$, the mean over unlabelled images of
    $\mathrm{softmax}(z\cdot\mu/\tau)$, towards their expected composition.

    Args:
        z: embeddings, rows [view 1; view 2].
        prototypes: unit vectors; they get no gradient.
        batch: labels.
        methods: one per network; temperatures, shares and the ramp must agree.
        n_known: number of known classes.

    Returns:
        The losses; and classes of the images by view 1: their label, or the nearest prototype if that is novel, or -1.

    Raises:
        ValueError: if settings that must agree differ.
    """
    if len(set(methods)) > 1:
        raise ValueError("OpenCon networks side by side must have equal settings: train the others in another call")
    method, given = methods[0], batch.given
    is_labelled = given != bacon.UNLABELLED
    cosines = z[:, : given.shape[1]] @ prototypes.detach().mT
    scores = open_world.standardize(cosines.detach())
    nearest = torch.where(is_labelled, given, scores.argmax(-1))
    is_novel = open_world.novel_rows(scores[..., :n_known].amax(-1), given, method.known_share)

    onehot = F.one_hot(nearest, prototypes.shape[-2]).to(z.dtype)
    pulls = torch.stack([onehot, torch.zeros_like(onehot), onehot])
    keep = torch.stack([is_labelled, ~is_labelled, is_novel])
    three_taus = [[method.tau_labelled], [method.tau_unlabelled], [method.tau_novel]]
    tau = torch.tensor(three_taus, dtype=z.dtype, device=z.device).expand(3, len(z))
    kernel = (bacon.similarities(z) / tau[..., None, None]).exp()
    three = bacon.contrastive_loss(z.expand(3, -1, -1, -1), kernel, pulls, keep, tau)
    ramp = min(1.0, batch.epoch / method.ramp_epochs) if method.ramp_epochs > 0 else 1.0
    weights = (method.weight_labelled, method.weight_unlabelled, ramp * method.weight_novel)
    loss = sum((weight * part for weight, part in zip(weights, three, strict=True)), torch.zeros_like(three[0]))
    free = (~is_labelled).to(z.dtype)[..., None]
    probs = (cosines / method.tau_prototypes).softmax(-1)
    mean_probs = (probs * free).sum(-2) / free.sum(-2).clamp(min=1)
    composition = open_world.composition_divergence(mean_probs, n_known, method.labelled_share)
    loss = loss + method.weight_composition * composition * free.amax((-1, -2))
    return loss, torch.where(is_labelled | (nearest >= n_known), nearest, bacon.UNLABELLED)


def stack_losses(
    stack: NetworkStack,
    tokens: Float[Tensor, "s r ..."],
    batch: Batch,
    methods: Sequence[AnyMethod],
    settings: Settings,
    n_known: int,
) -> Float[Tensor, " s"]:
    """Losses of networks of one kind; the prototypes of OpenCon move on.

    Where there are two branches their losses are added: neither sends a gradient to the other.

    Args:
        stack: the networks.
        tokens: inputs of the last block, rows [view 1; view 2].
        batch: what else the update knows.
        methods: one per network, all of the same kind.
        settings: shared settings.
        n_known: number of known classes.
    """
    kind, outputs = methods[0].kind, stack(tokens)
    b, n_classes = batch.given.shape[1], batch.counts.shape[1]
    if kind == "prototypes":
        prototypes = stack.weights["head.prototypes.weight"]
        losses, classes = open_con_loss(outputs, prototypes.clone(), batch, methods, n_known)  # type: ignore[arg-type]
        momentum = methods[0].momentum  # type: ignore[union-attr]
        prototypes.copy_(open_world.moved_prototypes(prototypes, outputs[:, :b], classes, momentum))
        return losses
    cosines, rest = outputs[..., :n_classes].unflatten(1, (2, b)), outputs[..., n_classes:]
    if kind == "class branch":
        own = [method for method in methods if isinstance(method, Method)]
        orca = [method for method in methods if isinstance(method, Orca)]
        if list(methods) != [*own, *orca]:
            raise ValueError("ORCA must come after other class branches, so that either are neighbours: sort the rows")
        one, two, parts = slice(0, len(own)), slice(len(own), None), []
        if own:
            parts.append(pseudo_label_loss(cosines[one], batch.select(one), own, settings))
        if orca:
            features = rest[two].unflatten(1, (2, b))
            parts.append(orca_loss(cosines[two], features, batch.select(two), orca, settings))
        return torch.cat(parts)
    losses = pseudo_label_loss(cosines, batch, methods, settings)  # type: ignore[arg-type]
    return losses + contrastive_branch_loss(cosines, rest, batch, methods, settings)  # type: ignore[arg-type]
