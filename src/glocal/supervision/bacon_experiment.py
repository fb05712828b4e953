r"""Running methods side by side on problems of one imbalance, and the two baselines that need no training loop.

n images, q problems, k classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from glocal.data import load
from glocal.data.types import ImageData, Splits, TableData
from glocal.nn.training import Recipe
from glocal.seeding import derive_seed, numpy_generator
from glocal.supervision import bacon
from glocal.supervision.bacon_data import Problem, Views
from glocal.supervision.bacon_methods import Method, Row, Settings
from glocal.supervision.bacon_networks import Backbone
from glocal.supervision.bacon_training import Fitted, evaluate, fit, plain_inputs


@dataclass(frozen=True)
class Outcome:
    """Results of one method.

    Args:
        kmeans: accuracy of each class by k-means on the contrastive branch, for every problem.
        head: the same by the arg max of the pseudo-label branch.
        priors: class sizes that the method used, by estimation and problem.
        epochs: epochs of the estimations.
        pinned: accuracy by semi-supervised k-means, see `pinned_kmeans`.
    """

    kmeans: Float[np.ndarray, "q k"]
    head: Float[np.ndarray, "q k"]
    priors: Float[np.ndarray, "e q k"]
    epochs: Sequence[int]
    pinned: Float[np.ndarray, "q k"] | None = None


def load_pool(
    dataset: str, *, fake: bool = False
) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"], Int[Tensor, " m"] | None]:
    """All images of a set, their labels, and the indices of the published test part, if there is one.

    Args:
        dataset: `optdigits` or an image set of `glocal.data`.
        fake: a stand-in of the same shape, for rehearsals.

    Raises:
        ValueError: for a set of another kind.
    """
    data = load(dataset, fake=fake)
    if isinstance(data, TableData):
        if data.x.shape[1] != 64:
            raise ValueError(f"a table must hold 8 x 8 images, got {data.x.shape[1]} columns: use optdigits")
        return (data.x / 16).float().reshape(-1, 1, 8, 8), data.labels, None
    if isinstance(data, ImageData):
        return data.images, data.labels, None
    if isinstance(data, Splits) and isinstance(data.train, ImageData):
        images = torch.cat([data.train.images, data.test.images])
        labels = torch.cat([data.train.labels, data.test.labels])
        return images, labels, torch.arange(len(data.train), len(labels))
    raise ValueError(f"dataset must be a set of images, got {dataset!r}: use optdigits or cifar100")


def pinned_kmeans(
    features: Float[Tensor, "n d"],
    given: Int[Tensor, " n"],
    n_known: int,
    n_clusters: int,
    *,
    n_init: int = 10,
    n_iterations: int = 20,
    rng: np.random.Generator,
) -> Int[np.ndarray, " n"]:
    """Semi-supervised k-means of GCD: labelled points stay in the cluster of their class.

    Centres of known classes start at the mean of their labelled points, the others by k-means++ on the rest.

    Args:
        features: any scale; they are normalised here.
        given: classes, -1 for free points.
        n_known: number of known classes, each with a labelled point.
        n_clusters: number of clusters.
        n_init: starts; the smallest inertia wins.
        n_iterations: Lloyd steps per start.
        rng: source of the starts.
    """
    x, pins = F.normalize(features, dim=-1).double().cpu().numpy(), given.cpu().numpy()
    is_pinned = pins >= 0
    best, best_inertia = pins, np.inf

    def distances(centres: np.ndarray) -> np.ndarray:
        return ((x**2).sum(1)[:, None] - 2 * x @ centres.T + (centres**2).sum(1)).clip(min=0)

    for _ in range(n_init):
        centres = np.stack([x[pins == k].mean(0) for k in range(n_known)])
        while len(centres) < n_clusters:
            weights = np.where(is_pinned, 0, distances(centres).min(1))
            centres = np.vstack([centres, x[rng.choice(len(x), p=weights / weights.sum())]])
        for _ in range(n_iterations):
            clusters = np.where(is_pinned, pins, distances(centres).argmin(1))
            onehot = np.eye(n_clusters)[clusters]
            sizes = onehot.sum(0)[:, None]
            centres = np.where(sizes > 0, onehot.T @ x / sizes.clip(min=1), centres)
        inertia = distances(centres)[np.arange(len(x)), clusters].sum()
        if inertia < best_inertia:
            best, best_inertia = clusters, inertia
    return best


def compare(
    images: Float[Tensor, "n c h w"],
    problems: Sequence[Problem],
    backbones: Sequence[Backbone],
    methods: Mapping[str, Method],
    views: Views,
    settings: Settings,
    recipe: Recipe,
    *,
    n_problems: Mapping[str, int] | None = None,
    group: int = 0,
    seed: int,
) -> dict[str, Outcome]:
    """Train and evaluate methods on problems of one imbalance, as many side by side as `group` allows.

    Args:
        images: the pool.
        problems: draws of the task.
        backbones: one per problem.
        methods: by name.
        views: augmentation.
        settings: shared settings.
        recipe: budget of every method.
        n_problems: how many of the problems a method runs on, if not all.
        group: networks trained at once; 0 takes all of one architecture.
        seed: see `fit`.
    """
    found: dict[str, Outcome] = {}
    for is_shared in (False, True):
        names = [name for name, method in methods.items() if method.is_shared == is_shared]
        keys = [(n, q) for n in names for q in range((n_problems or {}).get(n, len(problems)))]
        parts: dict[tuple[str, int], tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        epochs: Sequence[int] = []
        for start in range(0, len(keys), group or max(1, len(keys))):
            some = keys[start : start + (group or len(keys))]
            rows = [Row(q, methods[name]) for name, q in some]
            fitted: Fitted = fit(images, problems, backbones, rows, views, settings, recipe, seed=seed)
            accuracy = evaluate(fitted, images, problems, backbones, views, settings, seed=seed)
            epochs = fitted.epochs
            for i, key in enumerate(some):
                parts[key] = accuracy["kmeans"][i], accuracy["head"][i], fitted.priors[:, i]
        for name in names:
            mine = [parts[key] for key in keys if key[0] == name]
            kmeans, head, priors = (np.stack(column) for column in zip(*mine, strict=True))
            found[name] = Outcome(kmeans, head, priors.swapaxes(0, 1), epochs)
    return found


def trunk_floor(
    images: Float[Tensor, "n c h w"],
    problems: Sequence[Problem],
    backbones: Sequence[Backbone],
    views: Views,
    settings: Settings,
    *,
    seed: int,
) -> Outcome:
    """K-means on the pre-trained features, before any training: what every method starts from.

    `pinned` is semi-supervised k-means on test images together with the labelled training images.
    """
    kmeans, pinned, priors = [], [], []
    with torch.no_grad():
        for q, (problem, backbone) in enumerate(zip(problems, backbones, strict=True)):
            test, train = (
                backbone.block(plain_inputs(images[index.to(images.device)], backbone, views))
                for index in (problem.test, problem.train)
            )
            labels, k, state = problem.test_labels.numpy(), problem.n_classes, derive_seed(seed, "floor", q) % 2**32
            clusters = bacon.kmeans(test, k, n_init=settings.eval_init, random_state=state)
            kmeans.append(bacon.class_accuracy(clusters, labels, k))
            is_labelled = problem.given != bacon.UNLABELLED
            points = torch.cat([test, train[is_labelled.to(train.device)]])
            given = torch.cat([torch.full_like(problem.test, bacon.UNLABELLED), problem.given[is_labelled]])
            clusters = pinned_kmeans(
                points, given, problem.n_known, k, n_init=3, rng=numpy_generator(seed, "pinned", q)
            )
            pinned.append(bacon.class_accuracy(clusters[: len(test)], labels, k))
            clusters = bacon.kmeans(train, k, n_init=settings.est_init, random_state=state)
            priors.append(bacon.prior_from_clusters(clusters, problem.given.numpy(), problem.n_known, k))
    return Outcome(np.stack(kmeans), np.stack(kmeans), np.stack(priors)[None], [0], np.stack(pinned))
