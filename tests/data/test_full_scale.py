"""Full-scale loaders on small files in the true formats, whole and damaged."""

import pickle
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import sparse

from glocal.data import DataError, hubs, interactions, load, planetoid
from glocal.data.hubs import HUB_IMAGES, fake_hub_images, load_hub_images, load_sst2
from glocal.data.interactions import InteractionSet, load_interactions, read_interactions
from glocal.data.planetoid import PLANETOID_SETS, load_planetoid

HUB = {spec.name: spec for spec in HUB_IMAGES}
TOY = InteractionSet("toy", n_users=4, n_items=6, n_train=6, n_test=3, origin="the toy shop")
TRAIN, TEST = "0 1 2 5\n1 0\n3 3 4\n", "0 3\n1 1 2\n2 \n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with the toy interactions."""
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "train.txt").write_text(TRAIN)
    (tmp_path / "toy" / "test.txt").write_text(TEST)
    return tmp_path


def test_interactions_are_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_interactions(TOY, root=root)
    assert data.train.tolist() == [[0, 1], [0, 2], [0, 5], [1, 0], [3, 3], [3, 4]]
    assert data.test.tolist() == [[0, 3], [1, 1], [1, 2]]
    assert (data.n_users, data.n_items) == (4, 6)
    monkeypatch.setenv("GLOCAL_DATA", str(root))
    assert torch.equal(load_interactions(TOY).train, data.train)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TRAIN[:-5], r"expected 6 pairs, found 4: the file is truncated or another version"),
        ("0 1 2 5\n1 x\n3 3 4\n", r"line 2 must be one line per user, .* got '1 x'"),
        ("0 1 2 5\n1 -1\n3 3 4\n", r"line 2 must be"),
        ("0 1 2 5\n1 0\n4 3 4\n", r"user 4 is out of range, toy has 4 users"),
        ("0 1 2 6\n1 0\n3 3 4\n", r"item 6 is out of range, toy has 6 items"),
        ("", r"the file contains no pairs"),
        ("0\n1\n", r"the file contains no pairs"),
    ],
)
def test_damaged_interactions_are_explained(root: Path, text: str, message: str) -> None:
    path = root / "toy" / "train.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        load_interactions(TOY, root=root)
    assert str(path) in str(caught.value)
    assert "the toy shop into $GLOCAL_DATA/toy/" in str(caught.value)
    assert caught.value.problem == "corrupt"


def test_binary_rubbish_is_explained(root: Path) -> None:
    (root / "toy" / "train.txt").write_bytes(b"\x89PNG\xff\x00")
    with pytest.raises(DataError, match="cannot be read"):
        load_interactions(TOY, root=root)


def test_missing_interactions_are_explained(root: Path) -> None:
    (root / "toy" / "test.txt").unlink()
    with pytest.raises(DataError, match=r"test\.txt: the file does not exist.*one line per user, 'user item item"):
        load_interactions(TOY, root=root)


def test_a_split_of_unknown_size_need_not_match(root: Path) -> None:
    loose = replace(TOY, n_train=100, exact=False)
    assert len(load_interactions(loose, root=root).train) == 6


def test_blank_lines_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("0 1\n\n  \n2   4\t5\n")
    assert read_interactions(path, how_to_get="").tolist() == [[0, 1], [2, 4], [2, 5]]


@pytest.mark.parametrize("spec", interactions.INTERACTION_SETS, ids=lambda spec: spec.name)
def test_fake_interactions_have_the_published_numbers(spec: InteractionSet) -> None:
    data = load(spec.name, fake=True)
    assert data.train.shape == (spec.n_train, 2)
    assert data.test.shape == (spec.n_test, 2)
    assert (data.n_users, data.n_items) == (spec.n_users, spec.n_items)
    assert len(data.train[:, 0].unique()) == spec.n_users
    assert len(data.train[:, 1].unique()) == spec.n_items
    keys = torch.cat([data.train, data.test]) @ torch.tensor([spec.n_items, 1])
    assert len(keys.unique()) == len(keys)
    assert int(data.test[:, 1].max()) < spec.n_items


def test_published_sizes() -> None:
    sizes = {
        spec.name: (spec.n_users, spec.n_items, spec.n_train + spec.n_test) for spec in interactions.INTERACTION_SETS
    }
    assert sizes == {
        "gowalla": (29858, 40981, 1027370),
        "yelp2018": (31668, 38048, 1561406),
        "amazon-books": (52643, 91599, 2984108),
        "ml-1m": (6022, 3043, 995154),
    }


TINY = replace(PLANETOID_SETS[0], n_nodes=602, n_features=3, n_edges=8, class_names=("a", "b"))


@pytest.fixture
def cora(tmp_path: Path) -> Path:
    """Raw files in Planetoid's format: 602 nodes, the first two labelled, the last two for testing, a short path."""
    folder = tmp_path / "Planetoid" / "Cora" / "raw"
    folder.mkdir(parents=True)
    x = np.arange(602 * 3, dtype=np.float32).reshape(602, 3) % 2
    y = np.eye(2, dtype=np.int32)[np.arange(602) % 2]
    parts: dict[str, Any] = {
        "x": sparse.csr_matrix(x[:2]),
        "allx": sparse.csr_matrix(x[:600]),
        "tx": sparse.csr_matrix(x[600:]),
        "y": y[:2],
        "ally": y[:600],
        "ty": y[600:],
        "graph": {0: [1], 1: [0, 2], 2: [1, 600], 600: [2, 601], 601: [600], 3: [], 4: []},
    }
    for name, value in parts.items():
        with (folder / f"ind.cora.{name}").open("wb") as stream:
            pickle.dump(value, stream)
    (folder / "ind.cora.test.index").write_text("600\n601\n")
    return tmp_path


def test_planetoid_files_are_read(cora: Path) -> None:
    before = sorted(path.name for path in cora.rglob("*"))
    data = load_planetoid(TINY, root=cora)
    assert data.x.shape == (602, 3)
    assert data.y.tolist() == [k % 2 for k in range(602)]
    pairs = sorted(map(tuple, data.edge_index.T.tolist()))
    assert pairs == sorted([(0, 1), (1, 0), (1, 2), (2, 1), (2, 600), (600, 2), (600, 601), (601, 600)])
    assert data.class_names == ("a", "b")
    assert data.train_mask.nonzero().squeeze(1).tolist() == [0, 1]
    assert data.val_mask.nonzero().squeeze(1).tolist() == list(range(2, 502))
    assert data.test_mask.nonzero().squeeze(1).tolist() == [600, 601]
    assert sorted(path.name for path in cora.rglob("*")) == before  # nothing is written


def test_damaged_planetoid_files_are_explained(cora: Path) -> None:
    path = cora / "Planetoid" / "Cora" / "raw" / "ind.cora.allx"
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    with pytest.raises(DataError, match=r"corrupt or truncated.*kimiyoung/planetoid"):
        load_planetoid(TINY, root=cora)
    path.write_bytes(whole)
    with pytest.raises(DataError, match="expected 603 nodes, 3 features and 8 edges, read"):
        load_planetoid(replace(TINY, n_nodes=603), root=cora)
    path.unlink()
    with pytest.raises(DataError, match=r"ind\.cora\.allx: the file does not exist") as caught:
        load_planetoid(TINY, root=cora)
    assert caught.value.problem == "missing"


@pytest.mark.parametrize("spec", planetoid.PLANETOID_SETS, ids=lambda spec: spec.name)
def test_fake_planetoid_has_the_published_sizes(spec: planetoid.PlanetoidSet) -> None:
    data = load(spec.name, fake=True)
    assert (data.num_nodes, data.num_features, data.num_edges) == (spec.n_nodes, spec.n_features, spec.n_edges)
    assert data.y[data.train_mask].bincount().tolist() == [20] * len(spec.class_names)
    assert (int(data.val_mask.sum()), int(data.test_mask.sum())) == (500, 1000)
    assert data.is_undirected()


class Column(list[Any]):
    """A column of a hub set."""


class Table:
    """The part of `datasets.Dataset` that the loaders use."""

    def __init__(self, columns: dict[str, list[Any]], names: list[str] | None, label: str) -> None:
        self.columns = columns
        feature = types.SimpleNamespace(names=names) if names else types.SimpleNamespace()
        self.features = {label: feature}

    def __getitem__(self, name: str) -> list[Any]:
        return Column(self.columns[name])


def picture(width: int, height: int, colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[tuple[str, str], Table]:
    """A stand-in for the package `datasets` with three small sets."""
    red, green = (255, 0, 0), (0, 255, 0)
    tables = {
        ("uoft-cs/cifar100", "train"): Table(
            {"img": [picture(32, 32, red), picture(32, 32, green)], "fine_label": [1, 0]},
            ["apple", "bear"],
            "fine_label",
        ),
        ("uoft-cs/cifar100", "test"): Table({"img": [picture(32, 32, green)], "fine_label": [1]}, None, "fine_label"),
        ("axiong/imagenet-r", "test"): Table(
            {
                "image": [picture(60 + k, 40, red).convert("L" if k else "RGB") for k in range(10)],
                "wnid": list("abababcabc"),
            },
            None,
            "wnid",
        ),
        ("stanfordnlp/sst2", "train"): Table({"sentence": ["good", "bad"], "label": [1, 0]}, None, "label"),
        ("stanfordnlp/sst2", "validation"): Table({"sentence": ["fine"], "label": [1]}, None, "label"),
    }

    def load_dataset(repository: str, *, split: str, cache_dir: str) -> Table:
        assert cache_dir == str(tmp_path / "huggingface")
        if (repository, split) not in tables:
            raise ConnectionError("no route to the hub")
        return tables[repository, split]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setenv("GLOCAL_DATA", str(tmp_path))
    return tables


@pytest.mark.usefixtures("hub")
def test_hub_images_become_tensors() -> None:
    splits = load_hub_images(HUB["cifar100"])
    assert splits.train.images.shape == (2, 3, 32, 32)
    assert splits.train.labels.tolist() == [1, 0]
    assert splits.train.class_names == ("apple", "bear")
    assert splits.train.images[0, :, 5, 5].tolist() == [1, 0, 0]
    assert splits.test.labels.tolist() == [1]


@pytest.mark.usefixtures("hub")
def test_hub_images_without_a_test_part_are_split() -> None:
    splits = load_hub_images(HUB["imagenet-r"], size=32)
    assert (len(splits.train), len(splits.test)) == (8, 2)
    assert splits.train.images.shape[1:] == (3, 32, 32)
    assert splits.train.class_names == ("a", "b", "c")
    again = load_hub_images(HUB["imagenet-r"], size=32)
    assert torch.equal(splits.test.labels, again.test.labels)
    with pytest.raises(ValueError, match="size must be between 8 and 1024"):
        load_hub_images(HUB["imagenet-r"], size=4)


@pytest.mark.usefixtures("hub")
def test_hub_sentences() -> None:
    splits = load_sst2()
    assert splits.train.sentences == ("good", "bad")
    assert splits.train.labels.tolist() == [1, 0]
    assert splits.test.class_names == ("negative", "positive")


@pytest.mark.usefixtures("hub")
def test_a_failed_download_is_explained() -> None:
    with pytest.raises(DataError, match=r"zh-plus/tiny-imagenet: .*ConnectionError: no route.*check the network"):
        load_hub_images(HUB["tiny-imagenet"])


def test_a_missing_package_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"package datasets is not installed.*pip install -r requirements-full.txt"):
        hubs.open_hub("uoft-cs/cifar100", "train", root=tmp_path)


def test_fake_hub_sets_have_the_true_shapes() -> None:
    for name, side, classes in (
        ("cifar10", 32, 10),
        ("cifar100", 32, 100),
        ("tiny-imagenet", 64, 200),
        ("imagenet-r", 224, 200),
    ):
        splits = load(name, fake=True)
        for part in (splits.train, splits.test):
            assert part.images.shape[1:] == (3, side, side)
            assert set(part.labels.tolist()) == set(range(classes))
            assert len(part.class_names) == classes
    small = fake_hub_images(HUB["imagenet-r"], size=64)
    assert small.train.images.shape[1:] == (3, 64, 64)
    text = load("sst2", fake=True)
    assert text.train.labels.bincount().tolist() == [256, 256]
    assert all(3 <= len(sentence.split()) <= 24 for sentence in text.train.sentences)
