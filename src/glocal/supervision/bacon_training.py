r"""Training BaCon, its ablations, GCD and SimGCD side by side, and their evaluation.

A *row* is one method on one problem; rows of one call share the budget. Rows on one
problem see the same batches and the same views.

s rows, q problems, n training images, k classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glocal.nn.stack import NetworkStack, predict
from glocal.nn.training import Recipe, train
from glocal.seeding import derive_seed, torch_generator
from glocal.supervision import bacon, bacon_clustering
from glocal.supervision.bacon_data import Problem, Views
from glocal.supervision.bacon_methods import Method, Row, Settings
from glocal.supervision.bacon_networks import Backbone, make_branches


@dataclass(frozen=True)
class Fitted:
    """Trained networks.

    Args:
        stacks: one stack for each architecture, with the positions of its networks in `rows`.
        rows: what they are.
        priors: class sizes in use after each estimation, for every row, by true class (see `bacon.slot_classes`).
        epochs: when they were estimated.
    """

    stacks: Sequence[tuple[NetworkStack, list[int]]]
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
    uniforms: Float[Tensor, "s b k"],
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
        uniforms: random numbers of the re-sampling, see `bacon.keep_confident`.
    """

    def each(name: str) -> Float[Tensor, " s"]:
        return torch.tensor([float(getattr(method, name)) for method in methods], device=z.device)

    lam = settings.lam
    tau_teacher = bacon.teacher_temperature(float(epoch), warmup=settings.teacher_epochs)
    distilled = bacon.self_distillation(outputs, settings.tau, tau_teacher)
    mean_probs = (outputs / settings.tau).softmax(-1).mean((-3, -2))
    regular = bacon.prior_regularizer(mean_probs, counts, each("power"))
    loss_ce = (1 - lam) * (distilled + regular) + lam * bacon.known_cross_entropy(outputs, given, settings.tau)

    similarity = bacon.similarities(z)
    kernel = (similarity / settings.tau_con).exp()
    alone, everyone = torch.zeros(*given.shape, 1, device=z.device), torch.ones_like(given, dtype=torch.bool)
    nce = bacon.contrastive_loss(z, (similarity / settings.tau_nce).exp(), alone, everyone, settings.tau_nce)
    onehot = F.one_hot(given.clamp(min=0), counts.shape[-1]).to(z.dtype)
    sup = bacon.contrastive_loss(z, kernel, onehot, given != bacon.UNLABELLED, settings.tau_con)
    has_soft = each("has_soft") * float(epoch >= settings.warmup)
    loss_cl = (1 - lam) * nce + lam * (1 - has_soft / 2) * sup
    if bool(has_soft.any()):
        soft = bacon.soft_labels(outputs, counts, settings.tau, each("tau_adj"))
        rates = bacon.keep_rates(given, counts, each("alpha"), each("beta"))
        keep = bacon.keep_confident(soft, given, rates, uniforms)
        loss_cl = loss_cl + lam / 2 * has_soft * bacon.contrastive_loss(z, kernel, soft, keep, settings.tau_con)
    return loss_ce, loss_cl


@torch.no_grad()
def plain_inputs(
    images: Float[Tensor, "n c h w"], backbone: Backbone, views: Views, batch_size: int = 256
) -> Float[Tensor, "n ..."]:
    """What the last block sees of images without augmentation; the trunk is frozen, so this is computed once."""
    return torch.cat([backbone.trunk(views.plain(part)) for part in images.split(batch_size)])


def row_features(
    stacks: Sequence[tuple[NetworkStack, list[int]]],
    inputs: Mapping[int, Tensor],
    rows: Sequence[Row],
    method: str,
    wanted: Sequence[int] | None = None,
    batch_size: int = 256,
) -> dict[int, Float[Tensor, "n _"]]:
    """Outputs of `method` of the networks at the positions `wanted` (all of them by default), by position in `rows`."""
    found: dict[int, Tensor] = {}
    for stack, where in stacks:
        mine = [(i, index) for i, index in enumerate(where) if wanted is None or index in wanted]
        for n in {len(inputs[rows[index].problem]) for _, index in mine}:  # as many images at a time
            same = [(i, index) for i, index in mine if len(inputs[rows[index].problem]) == n]
            x = torch.stack([inputs[rows[index].problem] for _, index in same])
            values = predict(stack.select([i for i, _ in same]), x, method=method, batch_size=batch_size)
            found |= dict(zip((index for _, index in same), values, strict=True))
    return found


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
    """Train all rows side by side, those of either architecture as one stack.

    Args:
        images: the pool, on the device of the training.
        problems: draws of the task, with the same numbers of classes and of test images.
        backbones: frozen trunk and last block of each problem.
        rows: methods and problems.
        views: augmentation.
        settings: shared settings.
        recipe: budget of both branches, the same SGD for either.
        seed: weights of the heads, batches and views derive from it and the index of the problem.
    """
    device, n_classes, b = images.device, problems[0].n_classes, recipe.batch_size
    where = [row.problem for row in rows]
    used = sorted(set(where))
    slot = torch.tensor([used.index(q) for q in where], device=device)
    stacks = []
    for is_shared in sorted({row.method.is_shared for row in rows}):
        mine = [i for i, row in enumerate(rows) if row.method.is_shared == is_shared]
        branches = [
            make_branches(
                backbones[where[i]],
                n_classes,
                widths=settings.widths,
                n_outputs=settings.n_outputs,
                is_shared=is_shared,
                generator=torch_generator(seed, "heads", where[i], device=device),
            )
            for i in mine
        ]
        stacks.append((NetworkStack(branches), mine))
    draws = [
        problems[q].sampling_weights.multinomial(
            recipe.n_steps * b, replacement=True, generator=torch_generator(seed, "batches", q)
        )
        for q in used
    ]
    pool_index = torch.stack([problems[q].train[d] for q, d in zip(used, draws, strict=True)]).to(device)
    all_given = torch.stack([problems[q].given[d] for q, d in zip(used, draws, strict=True)]).to(device)
    generators = [torch_generator(seed, "views", q, device=device) for q in used]
    chances = [torch_generator(seed, "re-sampling", q, device=device) for q in used]
    estimating = {where[i] for i, row in enumerate(rows) if row.method.needs_estimate}
    inputs = {q: plain_inputs(images[problems[q].train.to(device)], backbones[q], views) for q in estimating}
    uses_oracle = np.array([[row.method.prior == "oracle"] for row in rows])
    oracle = np.stack([true_counts(problems[q]) for q in where])
    start = np.where(uses_oracle, oracle, 1.0)  # uniform where nothing is estimated
    counts = torch.tensor(start, dtype=images.dtype, device=device)
    by_class = np.where(uses_oracle, np.array([problems[q].counts for q in where]), 1.0)  # the same, by true class
    history: list[np.ndarray] = []
    epochs: list[int] = []

    def estimate(epoch: int) -> None:
        needed = [i for i, row in enumerate(rows) if row.method.needs_estimate]
        for i, features in row_features(stacks, inputs, rows, "contrastive_features", needed).items():
            problem = problems[where[i]]
            state = derive_seed(seed, "estimate", where[i], epoch) % 2**32
            clusters = bacon.kmeans(features, n_classes, n_init=settings.est_init, random_state=state)
            found = bacon.prior_from_clusters(clusters, problem.given.numpy(), problem.n_known, n_classes)
            counts[i] = torch.from_numpy(found).to(counts)
            given, truth = problem.given.numpy(), problem.train_labels.numpy()
            by_class[i, bacon.slot_classes(clusters, given, truth, problem.n_known, n_classes)] = found
        history.append(by_class.copy())
        epochs.append(epoch)

    def loss_at(step: int) -> Float[Tensor, " s"]:
        epoch = step // settings.epoch_steps
        if step % (settings.epoch_steps * settings.est_freq) == 0:
            estimate(epoch)
        part = slice(step * b, (step + 1) * b)
        losses = []
        with torch.no_grad():
            batches = zip(pool_index[:, part], used, generators, strict=True)
            tokens = torch.stack(
                [backbones[q].trunk(views.random(images[i].repeat(2, 1, 1, 1), generator=g)) for i, q, g in batches]
            )
        uniforms = torch.stack([torch.rand(b, n_classes, generator=g, device=device) for g in chances])
        for stack, mine in stacks:
            both = stack(tokens[slot[mine]])
            outputs, z = both[..., :n_classes].unflatten(1, (2, b)), both[..., n_classes:]
            methods, given = [rows[i].method for i in mine], all_given[slot[mine], part]
            pair = branch_losses(outputs, z, given, counts[mine], methods, settings, epoch, uniforms[slot[mine]])
            losses.append(pair[0] + pair[1])  # no gradient crosses, so that each branch descends its own loss
        return torch.cat(losses)

    train([weight for stack, _ in stacks for weight in stack.parameters()], loss_at, recipe)
    return Fitted(stacks, list(rows), np.stack(history), epochs)


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
        `kmeans`: k-means on the backbone features of the contrastive branch; `pinned`: `pinned_kmeans` on them and
        those of the labelled training images; `head`: arg max of the pseudo-label branch.
    """
    rows, used = fitted.rows, sorted({row.problem for row in fitted.rows})
    test, labelled, given = {}, {}, {}
    for q in used:
        mask = problems[q].given != bacon.UNLABELLED
        given[q] = problems[q].given[mask]
        test[q] = plain_inputs(images[problems[q].test.to(images.device)], backbones[q], views)
        labelled[q] = plain_inputs(images[problems[q].train[mask].to(images.device)], backbones[q], views)
    features = row_features(fitted.stacks, test, rows, "contrastive_features")
    anchors = row_features(fitted.stacks, labelled, rows, "contrastive_features")
    outputs = row_features(fitted.stacks, test, rows, "class_outputs")
    found: dict[str, list[np.ndarray]] = {"kmeans": [], "pinned": [], "head": []}
    for i, row in enumerate(rows):
        problem, q = problems[row.problem], row.problem
        state = derive_seed(seed, "evaluate", q) % 2**32
        preds = bacon_clustering.cluster_test(
            features[i], anchors[i], given[q], problem.n_known, problem.n_classes, settings.eval_init, state
        )
        preds["head"] = outputs[i].argmax(-1).cpu().numpy()
        for rule, values in found.items():
            values.append(bacon.class_accuracy(preds[rule], problem.test_labels.numpy(), problem.n_classes))
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
