r"""Running methods side by side on several problems, and the baseline that needs no training loop.

n images, q problems, k classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from glocal.data import load
from glocal.data.types import ImageData, Splits, TableData
from glocal.nn.training import Recipe
from glocal.seeding import derive_seed
from glocal.supervision import bacon
from glocal.supervision.bacon_clustering import pinned_clusters
from glocal.supervision.bacon_data import Problem, Views
from glocal.supervision.bacon_methods import AnyMethod, Row, Settings
from glocal.supervision.bacon_networks import Backbone
from glocal.supervision.bacon_training import Fitted, evaluate, fit, plain_inputs


@dataclass(frozen=True)
class Outcome:
    """Results of one method.

    Args:
        kmeans: accuracy of each class by k-means on the features, for every problem; see `bacon_training.evaluate`.
        head: the same by the arg max of the class outputs.
        pinned: the same by semi-supervised k-means, for no problem if that was not asked for.
        priors: class sizes that the method used, by estimation and problem.
        epochs: epochs of the estimations.
    """

    kmeans: Float[np.ndarray, "q k"]
    head: Float[np.ndarray, "q k"]
    pinned: Float[np.ndarray, "p k"]
    priors: Float[np.ndarray, "e q k"]
    epochs: Sequence[int]


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


def compare(
    images: Float[Tensor, "n c h w"],
    problems: Sequence[Problem],
    backbones: Sequence[Backbone],
    methods: Mapping[str, AnyMethod],
    views: Views,
    settings: Settings,
    recipe: Recipe,
    *,
    n_problems: Mapping[str, int] | None = None,
    pinned: Sequence[str] = (),
    group: int = 0,
    seed: int,
) -> dict[str, Outcome]:
    """Train and evaluate methods on problems, as many side by side as `group` allows.

    Args:
        images: the pool.
        problems: draws of the task.
        backbones: one per problem.
        methods: by name.
        views: augmentation.
        settings: shared settings.
        recipe: budget of every method.
        n_problems: how many of the problems a method runs on, if not all.
        pinned: methods that are judged by semi-supervised k-means as well.
        group: networks trained at once; 0 takes all.
        seed: see `fit`.
    """
    by_name = [(n, range((n_problems or {}).get(n, len(problems)))) for n in methods]
    keys = [(name, q) for q in range(len(problems)) for name, mine in by_name if q in mine]  # one problem at a time
    parts: dict[tuple[str, int], tuple[np.ndarray, ...]] = {}
    epochs: Sequence[int] = []
    for start in range(0, len(keys), group or len(keys)):
        some = keys[start : start + (group or len(keys))]
        rows = [Row(q, methods[name]) for name, q in some]
        fitted: Fitted = fit(images, problems, backbones, rows, views, settings, recipe, seed=seed)
        also = [i for i, (name, _) in enumerate(some) if name in pinned]
        accuracy = evaluate(fitted, images, problems, backbones, views, settings, pinned=also, seed=seed)
        epochs = fitted.epochs
        for i, key in enumerate(some):
            own = accuracy["pinned"][[also.index(i)] if i in also else []]
            parts[key] = accuracy["kmeans"][i], accuracy["head"][i], own, fitted.priors[:, i]
    found: dict[str, Outcome] = {}
    for name in methods:
        mine = [parts[key] for key in keys if key[0] == name]
        kmeans, head, own, priors = zip(*mine, strict=True)
        found[name] = Outcome(np.stack(kmeans), np.stack(head), np.concatenate(own), np.stack(priors, 1), epochs)
    return found


def trunk_floor(
    images: Float[Tensor, "n c h w"],
    problems: Sequence[Problem],
    backbones: Sequence[Backbone],
    views: Views,
    settings: Settings,
    *,
    seed: int,
) -> dict[str, Float[np.ndarray, "q k"]]:
    """Accuracy by k-means (`kmeans`, `pinned`) on the pre-trained features: what every method starts from."""
    found: dict[str, list[np.ndarray]] = {"kmeans": [], "pinned": []}
    for q, (problem, backbone) in enumerate(zip(problems, backbones, strict=True)):
        is_labelled = problem.given != bacon.UNLABELLED
        with torch.no_grad():
            test, labelled = (
                backbone.block(plain_inputs(images[index.to(images.device)], backbone, views))
                for index in (problem.test, problem.train[is_labelled])
            )
        given, k, state = problem.given[is_labelled], problem.n_classes, derive_seed(seed, "floor", q) % 2**32
        starts = settings.eval_init
        preds = {
            "kmeans": bacon.kmeans(test, k, n_init=starts, random_state=state),
            "pinned": pinned_clusters(test, labelled, given, problem.n_known, k, starts, state),
        }
        for rule, values in found.items():
            values.append(bacon.class_accuracy(preds[rule], problem.test_labels.numpy(), k))
    return {rule: np.stack(values) for rule, values in found.items()}
