r"""Training all methods side by side, and their evaluation.

A *row* is one method on one problem; rows of one call share the budget. Rows on one
problem see the same batches and the same views.

s rows, q problems, n training images, k classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from glocal.nn.stack import NetworkStack, predict
from glocal.nn.training import Recipe, train
from glocal.seeding import derive_seed, torch_generator
from glocal.supervision import bacon, bacon_clustering
from glocal.supervision import bacon_open_world as open_world
from glocal.supervision.bacon_data import Problem, Views
from glocal.supervision.bacon_losses import Batch, stack_losses
from glocal.supervision.bacon_methods import KINDS, Orca, Row, Settings
from glocal.supervision.bacon_networks import Backbone, make_network


@dataclass(frozen=True)
class Fitted:
    """Trained networks.

    Args:
        stacks: one stack for each kind of network, with the positions of its networks in `rows`.
        rows: what they are.
        priors: class sizes in use after each estimation, for every row, by true class (see `bacon.slot_classes`).
        epochs: when they were estimated.
    """

    stacks: Sequence[tuple[NetworkStack, list[int]]]
    rows: Sequence[Row]
    priors: Float[np.ndarray, "e s k"]
    epochs: Sequence[int]


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
    """Train all rows side by side, those of one kind as one stack.

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
    for kind in sorted({row.method.kind for row in rows}, key=KINDS.index):
        mine = [i for i, row in enumerate(rows) if row.method.kind == kind]
        mine.sort(key=lambda i: isinstance(rows[i].method, Orca))  # neighbours have the same loss
        made = [
            make_network(
                rows[i].method,
                backbones[where[i]],
                n_classes,
                settings,
                generator=torch_generator(seed, "heads", where[i], device=device),
            )
            for i in mine
        ]
        stacks.append((NetworkStack(made), mine))
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
    partners = [torch_generator(seed, "partners", q, device=device) for q in used]
    estimating = {where[i] for i, row in enumerate(rows) if row.method.needs_estimate}
    inputs = {q: plain_inputs(images[problems[q].train.to(device)], backbones[q], views) for q in estimating}
    orcas = [i for i, row in enumerate(rows) if isinstance(row.method, Orca)]
    free = {q: problems[q].train[problems[q].given == bacon.UNLABELLED] for q in {where[i] for i in orcas}}
    free_inputs = {q: plain_inputs(images[index.to(device)], backbones[q], views) for q, index in free.items()}
    margins = torch.zeros(len(rows), dtype=images.dtype, device=device)
    uses_oracle = np.array([[getattr(row.method, "prior", "") == "oracle"] for row in rows])
    oracle = np.stack([true_counts(problems[q]) for q in where])
    start = np.where(uses_oracle, oracle, 1.0)  # uniform where nothing is estimated
    counts = torch.tensor(start, dtype=images.dtype, device=device)
    by_class = np.where(uses_oracle, np.array([problems[q].counts for q in where]), 1.0)  # the same, by true class
    history: list[np.ndarray] = []
    epochs: list[int] = []

    def estimate(epoch: int) -> None:
        needed = [i for i, row in enumerate(rows) if row.method.needs_estimate]
        for i, features in row_features(stacks, inputs, rows, "features", needed).items():
            problem = problems[where[i]]
            state = derive_seed(seed, "estimate", where[i], epoch) % 2**32
            clusters = bacon.kmeans(features, n_classes, n_init=settings.est_init, random_state=state)
            found = bacon.prior_from_clusters(clusters, problem.given.numpy(), problem.n_known, n_classes)
            counts[i] = torch.from_numpy(found).to(counts)
            given, truth = problem.given.numpy(), problem.train_labels.numpy()
            by_class[i, bacon.slot_classes(clusters, given, truth, problem.n_known, n_classes)] = found
        history.append(by_class.copy())
        epochs.append(epoch)

    def measure_uncertainty(step: int) -> None:  # once per pass over the training set
        due = [i for i in orcas if step % max(1, len(problems[where[i]].train) // b) == 0]
        for i, outputs in row_features(stacks, free_inputs, rows, "class_outputs", due).items():
            margins[i] = open_world.uncertainty(outputs, settings.tau)

    def loss_at(step: int) -> Float[Tensor, " s"]:
        epoch = step // settings.epoch_steps
        measure_uncertainty(step)
        if step % (settings.epoch_steps * settings.est_freq) == 0:
            estimate(epoch)
        part = slice(step * b, (step + 1) * b)
        losses = []
        with torch.no_grad():
            batches = zip(pool_index[:, part], used, generators, strict=True)
            tokens = torch.stack(
                [backbones[q].trunk(views.random(images[i].repeat(2, 1, 1, 1), generator=g)) for i, q, g in batches]
            )
        resampling = torch.stack([torch.rand(b, n_classes, generator=g, device=device) for g in chances])
        mates = torch.stack([torch.rand(b, b, generator=g, device=device) for g in partners])
        for stack, mine in stacks:
            at = slot[mine]
            batch = Batch(all_given[at, part], counts[mine], margins[mine], resampling[at], mates[at], epoch)
            methods = [rows[i].method for i in mine]
            losses.append(stack_losses(stack, tokens[at], batch, methods, settings, problems[0].n_known))
        return torch.cat(losses)

    weights = [weight for stack, _ in stacks for weight in stack.parameters() if weight.requires_grad]
    train(weights, loss_at, recipe)
    return Fitted(stacks, list(rows), np.stack(history), epochs)


def evaluate(
    fitted: Fitted,
    images: Float[Tensor, "n c h w"],
    problems: Sequence[Problem],
    backbones: Sequence[Backbone],
    views: Views,
    settings: Settings,
    *,
    pinned: Sequence[int] | None = None,
    seed: int,
) -> dict[str, Float[np.ndarray, "_ k"]]:
    """Accuracy of each class on the balanced test set, for every row, under one assignment over all classes.

    Args:
        fitted: trained networks.
        images: the pool.
        problems: draws of the task.
        backbones: one per problem.
        views: augmentation.
        settings: shared settings.
        pinned: rows to cluster with `bacon_clustering.pinned_kmeans` as well, all by default.
        seed: starts of k-means derive from it and the index of the problem.

    Returns:
        `kmeans`: k-means on the backbone features, of the contrastive branch if there are two; `head`: arg max of the
        class outputs (OpenCon: the nearest prototype); `pinned`: `pinned_kmeans` on the features and those of the
        labelled training images, for the rows in `pinned` only.
    """
    rows, used = fitted.rows, sorted({row.problem for row in fitted.rows})
    test, labelled, given = {}, {}, {}
    for q in used:
        mask = problems[q].given != bacon.UNLABELLED
        given[q] = problems[q].given[mask]
        test[q] = plain_inputs(images[problems[q].test.to(images.device)], backbones[q], views)
        labelled[q] = plain_inputs(images[problems[q].train[mask].to(images.device)], backbones[q], views)
    chosen = range(len(rows)) if pinned is None else pinned
    features = row_features(fitted.stacks, test, rows, "features")
    anchors = row_features(fitted.stacks, labelled, rows, "features", chosen)
    outputs = row_features(fitted.stacks, test, rows, "class_outputs")
    found: dict[str, list[np.ndarray]] = {"kmeans": [], "head": [], "pinned": []}
    for i, row in enumerate(rows):
        problem, q = problems[row.problem], row.problem
        state = derive_seed(seed, "evaluate", q) % 2**32
        k, starts = problem.n_classes, settings.eval_init
        preds = {
            "kmeans": bacon.kmeans(features[i], k, n_init=starts, random_state=state),
            "head": outputs[i].argmax(-1).cpu().numpy(),
        }
        if i in chosen:
            preds["pinned"] = bacon_clustering.pinned_clusters(
                features[i], anchors[i], given[q], problem.n_known, k, starts, state
            )
        for rule, clusters in preds.items():
            found[rule].append(bacon.class_accuracy(clusters, problem.test_labels.numpy(), k))
    return {rule: np.array(values).reshape(-1, problems[0].n_classes) for rule, values in found.items()}


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
