"""Random stand-ins with the shapes of real data sets, for rehearsals; no disk, no network."""

from typing import TYPE_CHECKING

import torch

from glocal.data.pyg import data_class
from glocal.data.types import ImageData, InteractionData, RatingData, Splits, TableData, TextData
from glocal.seeding import torch_generator

if TYPE_CHECKING:
    import torch_geometric.data


def fake_labels(n: int, n_classes: int, generator: torch.Generator) -> torch.Tensor:
    """Class indices in random order; class counts differ by at most one."""
    return (torch.arange(n) % n_classes)[torch.randperm(n, generator=generator)]


def fake_images(name: str, *, n: int, shape: tuple[int, int, int], class_names: tuple[str, ...]) -> ImageData:
    """`n` images of uniform noise with balanced labels."""
    generator = torch_generator(0, "fake", name)
    images = torch.rand((n, *shape), generator=generator)
    return ImageData(images, fake_labels(n, len(class_names), generator), class_names)


def fake_image_splits(
    name: str, *, n_train: int, n_test: int, shape: tuple[int, int, int], class_names: tuple[str, ...]
) -> Splits[ImageData]:
    """Train and test parts of uniform noise with balanced labels."""
    train = fake_images(f"{name}/train", n=n_train, shape=shape, class_names=class_names)
    return Splits(train, fake_images(f"{name}/test", n=n_test, shape=shape, class_names=class_names))


def fake_table(name: str, *, n: int, d: int, class_names: tuple[str, ...]) -> TableData:
    """`n` rows of standard normal noise with balanced labels."""
    generator = torch_generator(0, "fake", name)
    x = torch.randn((n, d), generator=generator)
    return TableData(x, fake_labels(n, len(class_names), generator), class_names)


def fake_ratings(name: str, *, n: int, n_users: int, n_items: int) -> RatingData:
    """`n` distinct (user, item) pairs with ratings 1 to 5; every user and every item occurs."""
    generator = torch_generator(0, "fake", name)
    pairs = fake_pairs(n, n_users, n_items, generator)
    ratings = torch.randint(1, 6, (n,), generator=generator).float()
    timestamps = torch.randint(874_000_000, 894_000_000, (n,), generator=generator)
    return RatingData(pairs[:, 0], pairs[:, 1], ratings, timestamps, n_users, n_items)


def fake_interactions(name: str, *, n_train: int, n_test: int, n_users: int, n_items: int) -> InteractionData:
    """Distinct pairs split into train and test; every user and item occurs in train."""
    generator = torch_generator(0, "fake", name)
    pairs = fake_pairs(n_train + n_test, n_users, n_items, generator)
    return InteractionData(pairs[:n_train], pairs[n_train:], n_users, n_items)


def fake_pairs(n: int, n_users: int, n_items: int, generator: torch.Generator) -> torch.Tensor:
    """`n` distinct pairs, shape `(n, 2)`; the first `max(n_users, n_items)` cover every user and item."""
    cover = torch.arange(max(n_users, n_items))
    cover = (cover % n_users) * n_items + cover % n_items
    if n < len(cover):
        raise ValueError(f"n must be at least max(n_users, n_items) = {len(cover)}, got {n}")
    pool = torch.randint(n_users * n_items, (n + n // 8 + 64,), generator=generator)
    keys = cover
    while len(keys) < n:  # a second pass only where the table is nearly full
        fresh = pool.unique()
        fresh = fresh[~torch.isin(fresh, keys)]
        keys = torch.cat([keys, fresh[torch.randperm(len(fresh), generator=generator)]])
        pool = torch.randint(n_users * n_items, (n,), generator=generator)
    keys = keys[:n]
    return torch.stack([keys // n_items, keys % n_items], dim=1)


def fake_texts(name: str, *, n_train: int, n_test: int, class_names: tuple[str, ...]) -> Splits[TextData]:
    """Sentences of 3 to 24 made-up words with balanced labels."""

    def part(which: str, n: int) -> TextData:
        generator = torch_generator(0, "fake", name, which)
        lengths = torch.randint(3, 25, (n,), generator=generator).tolist()
        words = torch.randint(2000, (sum(lengths),), generator=generator).tolist()
        stream = iter(words)
        sentences = tuple(" ".join(f"word{next(stream)}" for _ in range(length)) for length in lengths)
        return TextData(sentences, fake_labels(n, len(class_names), generator), class_names)

    return Splits(part("train", n_train), part("test", n_test))


def fake_graph(
    name: str, *, n_nodes: int, n_features: int, n_edges: int, n_classes: int
) -> "torch_geometric.data.Data":
    """A random undirected graph; `n_edges` counts both directions. The first nodes have balanced labels."""
    generator = torch_generator(0, "fake", name)
    keys = torch.randint(n_nodes * n_nodes, (n_edges + 256,), generator=generator)
    low, high = torch.minimum(keys // n_nodes, keys % n_nodes), torch.maximum(keys // n_nodes, keys % n_nodes)
    pairs = torch.stack([low, high])[:, low < high].unique(dim=1)
    kept = pairs[:, torch.randperm(pairs.shape[1], generator=generator)[: n_edges // 2]]
    edge_index = torch.cat([kept, kept.flip(0)], dim=1)
    x = (torch.rand((n_nodes, n_features), generator=generator) < 0.02).float()
    return data_class()(x=x, edge_index=edge_index, y=torch.arange(n_nodes) % n_classes)
