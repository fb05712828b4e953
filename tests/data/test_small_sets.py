"""Embedded sets against independent readers and published numbers."""

import time

import pytest
import torch

from glocal.data import load
from glocal.data.files import locate
from glocal.data.small_images import MNIST_FILE


def test_mnist5k_equals_what_pandas_reads() -> None:
    import pandas as pd

    table = pd.read_csv(locate(MNIST_FILE), header=None).to_numpy()
    x, y = table[:, :-1], table[:, -1]
    data = load("mnist5k")
    assert data.images.shape == (5000, 1, 28, 28)
    assert torch.equal(data.images.flatten(1), torch.from_numpy(x).float() / 255)
    assert torch.equal(data.labels, torch.from_numpy(y).long())
    assert data.labels.bincount().tolist() == [500] * 10


def test_sklearn_sets_equal_what_sklearn_reads() -> None:
    from sklearn import datasets

    digits = datasets.load_digits()
    assert torch.equal(load("digits").images[:, 0], torch.from_numpy(digits.images).float() / 16)
    for name in ("iris", "wine", "breast_cancer"):
        bunch, data = getattr(datasets, f"load_{name}")(), load(name)
        assert torch.equal(data.x, torch.from_numpy(bunch.data).float())
        assert torch.equal(data.labels, torch.from_numpy(bunch.target).long())
        assert len(data.feature_names) == data.x.shape[1]


def test_ml_100k_has_its_published_numbers() -> None:
    data = load("ml-100k")
    assert (len(data), data.n_users, data.n_items) == (100_000, 943, 1682)
    assert data.ratings.long().bincount().tolist() == [0, 6110, 11370, 27145, 34174, 21201]
    # the first line of the original file: user 196, item 242, rating 3, time 881250949
    first = (data.users[0], data.items[0], data.ratings[0], data.timestamps[0])
    assert [int(value) for value in first] == [195, 241, 3, 881250949]
    assert data.users.unique().tolist() == list(range(943))
    assert data.items.unique().tolist() == list(range(1682))
    assert int(data.users.bincount().min()) == 20
    assert len((data.users * 1682 + data.items).unique()) == 100_000


@pytest.mark.parametrize(
    ("name", "shape", "counts"),
    [
        ("letter", (20000, 16), [789, 766, 736, 805, 768, 775, 773, 734, 755, 747, 739, 761, 792]),
        ("penbased", (10992, 16), [1143, 1143, 1144, 1055, 1144]),
        ("optdigits", (5620, 64), [554, 571, 557, 572, 568]),
        ("satimage", (6435, 36), [1533, 703, 1358, 626, 707, 1508]),
        ("movement_libras", (360, 90), [24] * 15),
        ("texture", (5500, 40), [500] * 11),
        ("spambase", (4597, 57), [2785, 1812]),
        ("phoneme", (5404, 5), [3818, 1586]),
    ],
)
def test_keel_tables_have_their_published_class_counts(name: str, shape: tuple[int, int], counts: list[int]) -> None:
    data = load(name)
    assert data.x.shape == shape
    assert data.labels.bincount().tolist()[: len(counts)] == counts


def test_keel_wdbc_is_the_table_of_sklearn() -> None:
    keel, sklearn = load("wdbc"), load("breast_cancer")
    assert keel.class_names == ("B", "M")
    for c, d in ((0, 1), (1, 0)):
        a, b = keel.x[keel.labels == c], sklearn.x[sklearn.labels == d]
        assert torch.allclose(a.sort(0).values, b.sort(0).values, rtol=1e-3, atol=6e-4)  # KEEL rounds


def test_optdigits_contains_the_digits_of_sklearn() -> None:
    rows = {tuple(row) for row in load("optdigits").x.int().tolist()}
    digits = (load("digits").images.flatten(1) * 16).int().tolist()
    assert all(tuple(row) in rows for row in digits)


def test_categorical_columns_become_indicators() -> None:
    german = load("german")
    assert german.x.shape == (1000, 61)
    group = [j for j, name in enumerate(german.feature_names) if name.startswith("x0=")]
    assert [german.feature_names[j] for j in group] == ["x0=A11", "x0=A12", "x0=A13", "x0=A14"]
    assert torch.equal(german.x[:, group].sum(1), torch.ones(1000))
    assert german.x[0, group].tolist() == [1, 0, 0, 0]  # the file starts with A11, 6, A34
    assert german.x[0, german.feature_names.index("x1")] == 6
    tic = load("tic-tac-toe")
    assert tic.x.shape == (958, 27)
    assert torch.equal(tic.x.sum(1), torch.full((958,), 9.0))


def test_small_sets_load_fast() -> None:
    start = time.process_time()
    for name in ("mnist5k", "letter", "ml-100k", "digits"):
        load(name)
    assert time.process_time() - start < 6


def test_subsets_keep_rows_together() -> None:
    data = load("iris")
    index = torch.tensor([100, 0, 50])
    part = data.subset(index)
    assert part.labels.tolist() == [2, 0, 1]
    assert torch.equal(part.x[1], data.x[0])


def test_photographs_are_read_without_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("no network")

    monkeypatch.setattr(socket, "socket", forbidden)
    from skimage import data as reference

    photos = load("photos")
    assert len(photos) == len(set(photos.names)) == len(photos.licences) == 20
    for name in ("astronaut", "coffee", "rocket", "chelsea"):
        picture = torch.from_numpy(getattr(reference, name)()).permute(2, 0, 1).float() / 255
        assert torch.equal(photos.images[photos.names.index(name)], picture)
    small = load("photos", names=("moon", "camera"), short_side=64)
    assert small.names == ("moon", "camera")
    assert [tuple(image.shape) for image in small.images] == [(3, 64, 64)] * 2
    assert all(image.min() >= 0 and image.max() <= 1 for image in photos.images)
    assert torch.equal(small.images[0][0], small.images[0][2])  # grey
    with pytest.raises(ValueError, match=r"names must be among astronaut.*got 'mona_lisa'"):
        load("photos", names=("mona_lisa",))
    with pytest.raises(ValueError, match="short_side must be between 16 and 2000"):
        load("photos", short_side=4)
