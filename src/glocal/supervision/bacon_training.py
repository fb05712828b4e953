r"""Training BaCon, its ablations, GCD and SimGCD side by side, and their evaluation.

A *row* is one method on one problem; rows of one call share architecture, budget and size of the training set. Rows on
one problem see the same batches and the same views.

s rows, q problems, n training images, k classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glocal.nn.stack import NetworkStack, predict
from glocal.nn.training import Recipe, train
from glocal.seeding import derive_seed, torch_generator
from glocal.supervision import bacon
from glocal.supervision.bacon_data import Problem, Views
from glocal.supervision.bacon_methods import Method, Row, Settings
from glocal.supervision.bacon_networks import Backbone, make_branches


@dataclass(frozen=True)
class Fitted:
    """A trained stack.

    Args:
        stack: the networks, one per row.
        rows: what they are.
        priors: estimated class sizes at each estimation, for every row.
        epochs: when they were estimated.
    """

    stack: NetworkStack
    rows: Sequence[Row]
    priors: Float[np.ndarray, "e s k"]
    epochs: Sequence[int]


def branch_losses(
    outputs: Float[Tensor, "s 2 b k"],
    z: Float[Tensor, "s 2*b z"],
    given: Int[Tensor, "s b"],
    counts: Float[Tensor, "s k"],
    methods: Sequence[Method],
    settings: Settings,
    epoch: int,
    *,
    generator: torch.Generator,
) -> tuple[Float[Tensor, " s"], Float[Tensor, " s"]]:
    r"""Losses of the pseudo-label and of the contrastive branch; neither sends a gradient to the other branch.

    $L_{ce} = (1 - \lambda)(L_{dis} + L_{reg}) + \lambda L_{cls}$ and, after the warm-up, $L_{cl} = (1 - \lambda)L_{nce}
    + \frac\lambda2L_{sup} + \frac\lambda2L_{soft}$, before it $(1 - \lambda)L_{nce} + \lambda L_{sup}$.

    Args:
        outputs: cosines with the prototypes for both views.
        z: embeddings, rows [view 1; view 2].
        given: labels, -1 for unlabelled images.
        counts: current estimate of the class sizes.
        methods: one per row.
        settings: shared settings.
        epoch: current epoch.
        generator: source of the re-sampling.
    """

    def each(name: str) -> Float[Tensor, " s"]:
        return torch.tensor([float(getattr(method, name)) for method in methods], device=z.device)

    lam, b = settings.lam, given.shape[-1]
    tau_teacher = bacon.teacher_temperature(float(epoch), warmup=settings.teacher_epochs)
    distilled = bacon.self_distillation(outputs, settings.tau, tau_teacher)
    mean_probs = (outputs / settings.tau).softmax(-1).mean((-3, -2))
    regular = bacon.prior_regularizer(mean_probs, counts, each("power"))
    loss_ce = (1 - lam) * (distilled + regular) + lam * bacon.known_cross_entropy(outputs, given, settings.tau)

    similarity = z @ z.mT
    everyone = torch.ones_like(given, dtype=torch.bool)
    pairs = bacon.view_weights(torch.zeros(*given.shape, b, device=z.device))
    nce = bacon.contrastive_loss(similarity, pairs, everyone, settings.tau_nce)
    same = (given[..., None] == given[..., None, :]).to(z.dtype)
    sup = bacon.contrastive_loss(similarity, bacon.view_weights(same), given != bacon.UNLABELLED, settings.tau_con)
    has_soft = each("has_soft") * float(epoch >= settings.warmup)
    loss_cl = (1 - lam) * nce + lam * (1 - has_soft / 2) * sup
    if bool(has_soft.any()):
        soft = bacon.soft_labels(outputs, counts, settings.tau, each("tau_adj"))
        rates = bacon.keep_rates(given, counts, each("alpha"), each("beta"))
        keep = bacon.keep_confident(soft, given, rates, generator=generator)
        transfer = bacon.contrastive_loss(similarity, bacon.view_weights(soft @ soft.mT), keep, settings.tau_con)
        loss_cl = loss_cl + lam / 2 * has_soft * transfer
    return loss_ce, loss_cl


@torch.no_grad()
def plain_inputs(
    images: Float[Tensor, "n c h w"], backbone: Backbone, views: Views, batch_size: int = 256
) -> Float[Tensor, "n ..."]:
    """What the last block sees of images without augmentation; the trunk is frozen, so this is computed once."""
    return torch.cat([backbone.trunk(views.plain(part)) for part in images.split(batch_size)])


def row_features(
    stack: NetworkStack, inputs: Mapping[int, Tensor], rows: Sequence[Row], method: str, batch_size: int = 256
) -> list[Float[Tensor, "n _"]]:
    """Outputs of `method` of each row's network on the inputs of its problem."""
    x = torch.stack([inputs[row.problem] for row in rows])
    return list(predict(stack, x, method=method, batch_size=batch_size))


def true_counts(problem: Problem) -> Float[np.ndarray, " k"]:
    """The oracle: true sizes of the known classes, those of the novel ones in falling order."""
    counts = np.array(problem.counts, dtype=float)
    return np.concatenate([counts[: problem.n_known], np.sort(counts[problem.n_known :])[::-1]])


def fit(
    images: Float[Tensor, "n c h w"],
    problems: Sequence[Problem],
    backbones: Sequence[Backbone],
    rows: Sequence[Row],
    views: Views,
    settings: Settings,
    recipe: Recipe,
    *,
    seed: int,
) -> Fitted:
    """Train all rows side by side.

    Args:
        images: the pool, on the device of the training.
        problems: all with the same number of training images.
        backbones: frozen trunk and last block of each problem.
        rows: methods and problems; all with one branch or all with two.
        views: augmentation.
        settings: shared settings.
        recipe: budget of both branches, the same SGD for either.
        seed: weights of the heads, batches and views derive from it and the index of the problem.

    Raises:
        ValueError: if rows with one and with two branches are mixed.
    """
    if len({row.method.is_shared for row in rows}) > 1:
        raise ValueError("rows of one call need the same architecture, got one and two branches: fit them separately")
    device, n_classes, b = images.device, problems[0].n_classes, recipe.batch_size
    where = [row.problem for row in rows]
    used = sorted(set(where))
    slot = torch.tensor([used.index(q) for q in where], device=device)
    stack = NetworkStack(
        [
            make_branches(
                backbones[row.problem],
                n_classes,
                widths=settings.widths,
                n_outputs=settings.n_outputs,
                is_shared=row.method.is_shared,
                generator=torch_generator(seed, "heads", row.problem, device=device),
            )
            for row in rows
        ]
    )
    draws = [
        problems[q].sampling_weights.multinomial(
            recipe.n_steps * b, replacement=True, generator=torch_generator(seed, "batches", q)
        )
        for q in used
    ]
    pool_index = torch.stack([problems[q].train[d] for q, d in zip(used, draws, strict=True)]).to(device)
    all_given = torch.stack([problems[q].given[d] for q, d in zip(used, draws, strict=True)]).to(device)
    generators = [torch_generator(seed, "views", q, device=device) for q in used]
    chance = torch_generator(seed, "re-sampling", device=device)
    inputs = {}
    if any(row.method.needs_estimate for row in rows):
        inputs = {q: plain_inputs(images[problems[q].train.to(device)], backbones[q], views) for q in used}
    oracle = [true_counts(problems[q]) for q in where]
    methods = [row.method for row in rows]
    needed = [i for i, method in enumerate(methods) if method.needs_estimate]
    uses_oracle = np.array([[method.prior == "oracle"] for method in methods])
    start = np.where(uses_oracle, np.stack(oracle), 1.0)  # uniform where nothing is estimated
    counts = torch.tensor(start, dtype=images.dtype, device=device)
    history: list[np.ndarray] = []
    epochs: list[int] = []

    def estimate(epoch: int) -> None:
        features = row_features(stack, inputs, rows, "contrastive_features") if needed else []
        for i in needed:
            problem = problems[where[i]]
            state = derive_seed(seed, "estimate", where[i], epoch) % 2**32
            clusters = bacon.kmeans(features[i], n_classes, n_init=settings.est_init, random_state=state)
            found = bacon.prior_from_clusters(clusters, problem.given.numpy(), problem.n_known, n_classes)
            counts[i] = torch.from_numpy(found).to(counts)
        history.append(counts.double().cpu().numpy())
        epochs.append(epoch)

    def loss_at(step: int) -> Float[Tensor, " s"]:
        epoch = step // settings.epoch_steps
        if step % (settings.epoch_steps * settings.est_freq) == 0:
            estimate(epoch)
        part = slice(step * b, (step + 1) * b)
        tokens = []
        with torch.no_grad():
            for index, q, generator in zip(pool_index[:, part], used, generators, strict=True):
                tokens.append(backbones[q].trunk(views.random(images[index].repeat(2, 1, 1, 1), generator=generator)))
        both = stack(torch.stack(tokens)[slot])
        outputs = both[..., :n_classes].unflatten(1, (2, b))
        losses = branch_losses(
            outputs, both[..., n_classes:], all_given[slot, part], counts, methods, settings, epoch, generator=chance
        )
        return losses[0] + losses[1]  # no gradient crosses, so that each branch descends its own loss

    train(stack.parameters(), loss_at, recipe)
    return Fitted(stack, list(rows), np.stack(history), epochs)


def evaluate(
    fitted: Fitted,
    images: Float[Tensor, "n c h w"],
    problems: Sequence[Problem],
    backbones: Sequence[Backbone],
    views: Views,
    settings: Settings,
    *,
    seed: int,
) -> dict[str, Float[np.ndarray, "s k"]]:
    """Accuracy of each class on the balanced test set, for every row, under one assignment over all classes.

    Returns:
        `kmeans`: k-means on the contrastive branch's backbone features; `head`: arg max of the pseudo-label branch.
    """
    used = sorted({row.problem for row in fitted.rows})
    inputs = {q: plain_inputs(images[problems[q].test.to(images.device)], backbones[q], views) for q in used}
    features = row_features(fitted.stack, inputs, fitted.rows, "contrastive_features")
    outputs = row_features(fitted.stack, inputs, fitted.rows, "class_outputs")
    found: dict[str, list[np.ndarray]] = {"kmeans": [], "head": []}
    for row, f, o in zip(fitted.rows, features, outputs, strict=True):
        problem = problems[row.problem]
        labels, k = problem.test_labels.numpy(), problem.n_classes
        state = derive_seed(seed, "evaluate", row.problem) % 2**32
        clusters = bacon.kmeans(f, k, n_init=settings.eval_init, random_state=state)
        found["kmeans"].append(bacon.class_accuracy(clusters, labels, k))
        found["head"].append(bacon.class_accuracy(o.argmax(-1).cpu().numpy(), labels, k))
    return {name: np.stack(values) for name, values in found.items()}


def prior_error(counts: Float[np.ndarray, " k"], clusters_true: Float[np.ndarray, " k"]) -> float:
    r"""$\lVert\hat\pi - \pi\rVert_1$ between two vectors of class sizes, each normalised to sum to one."""
    return float(np.abs(counts / counts.sum() - clusters_true / clusters_true.sum()).sum())


def rank_groups(counts: Sequence[int], n_known: int) -> dict[str, Bool[np.ndarray, " k"]]:
    """Masks of classes: `all`, `old`, `new`, and thirds by size within either, as in `old, many`, `new, few`."""
    n_classes = len(counts)
    known = np.arange(n_classes) < n_known
    groups = {"all": np.ones(n_classes, bool), "old": known, "new": ~known}
    for name in ("old", "new"):
        members = groups[name].nonzero()[0]
        by_size = members[np.argsort(-np.array(counts)[members], kind="stable")]
        for third, part in zip(("many", "med", "few"), np.array_split(by_size, 3), strict=True):
            groups[f"{name}, {third}"] = np.isin(np.arange(n_classes), part)
    return groups
