"""Full-scale sets from the Hugging Face hub, downloaded once into `$GLOCAL_DATA/huggingface`."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from glocal.data.entry import Entry
from glocal.data.errors import DataError
from glocal.data.fakes import fake_image_splits, fake_texts
from glocal.data.roots import data_root
from glocal.data.types import ImageData, Splits, TextData
from glocal.seeding import torch_generator

EXTRAS = "pip install -r requirements-full.txt"


@dataclass(frozen=True)
class HubImages:
    """An image set of the hub.

    Args:
        name: name in the registry.
        repository: name on the hub.
        size: default side of the square images in pixels.
        n_classes: number of classes.
        image: column of the pictures.
        label: column of the class, an index or a name.
        train: the hub's split used for training.
        test: the hub's split used for testing; empty if there is none and a fifth of `train` is held out.
    """

    name: str
    repository: str
    size: int
    n_classes: int
    image: str
    label: str
    train: str
    test: str


HUB_IMAGES = (
    HubImages("cifar10", "uoft-cs/cifar10", 32, 10, "img", "label", "train", "test"),
    HubImages("cifar100", "uoft-cs/cifar100", 32, 100, "img", "fine_label", "train", "test"),
    HubImages("tiny-imagenet", "zh-plus/tiny-imagenet", 64, 200, "image", "label", "train", "valid"),
    HubImages("imagenet-r", "axiong/imagenet-r", 224, 200, "image", "wnid", "test", ""),
)
SST2 = "stanfordnlp/sst2"
SST2_NAMES = ("negative", "positive")


def open_hub(repository: str, split: str, *, root: str | Path | None = None) -> Any:
    """One split of a hub set as a `datasets.Dataset`; downloads it at the first call.

    Raises:
        DataError: no data root, the package `datasets` is missing, or the download fails.
    """
    folder = data_root(root) / "huggingface"
    try:
        import datasets
    except ImportError:
        raise DataError(repository, "the package datasets is not installed", EXTRAS) from None
    try:
        return datasets.load_dataset(repository, split=split, cache_dir=str(folder))
    except Exception as error:  # the library raises many kinds, from requests, pyarrow and the hub
        reason = f"split {split!r} could not be read or downloaded ({type(error).__name__}: {error})"
        repair = f"check the network, or delete {folder} if an earlier download was interrupted, and load again"
        raise DataError(repository, reason, repair) from error


def load_hub_images(
    spec: HubImages, /, *, size: int | None = None, root: str | Path | None = None
) -> Splits[ImageData]:
    """An image set of the hub as float tensors.

    Memory: 12 bytes per pixel: 0.7 GB for cifar10 and cifar100, 5 GB for tiny-imagenet, 18 GB for imagenet-r at 224.

    Args:
        spec: which set.
        size: side in pixels; the shorter side is resized to it and the centre cropped.
        root: data root instead of `$GLOCAL_DATA`.
    """
    size = _check_size(size or spec.size)
    rows = open_hub(spec.repository, spec.train, root=root)
    parts = [rows] if not spec.test else [rows, open_hub(spec.repository, spec.test, root=root)]
    raw = [part[spec.label] for part in parts]
    feature = rows.features[spec.label]
    if hasattr(feature, "names"):
        names, labels = tuple(feature.names), [torch.tensor(list(column)) for column in raw]
    else:
        names = tuple(sorted(set(raw[0])))
        index = {name: k for k, name in enumerate(names)}
        labels = [torch.tensor([index[name] for name in column]) for column in raw]
    images = [_decode(part[spec.image], size) for part in parts]
    data = [ImageData(x, y, names) for x, y in zip(images, labels, strict=True)]
    if len(data) == 2:
        return Splits(*data)
    held_out = torch.randperm(len(data[0]), generator=torch_generator(0, spec.name, "split"))
    cut = len(held_out) // 5
    return Splits(data[0].subset(held_out[cut:]), data[0].subset(held_out[:cut]))


def _decode(pictures: Any, size: int) -> Float[Tensor, "n 3 size size"]:
    from PIL import Image

    images = torch.empty(len(pictures), 3, size, size)
    for k, picture in enumerate(pictures):
        rgb = picture.convert("RGB")
        if rgb.size != (size, size):
            scale = size / min(rgb.size)
            width, height = (max(size, round(side * scale)) for side in rgb.size)
            left, top = (width - size) // 2, (height - size) // 2
            rgb = rgb.resize((width, height), Image.Resampling.BICUBIC)
            rgb = rgb.crop((left, top, left + size, top + size))
        images[k] = torch.from_numpy(np.array(rgb)).permute(2, 0, 1).float().div_(255)
    return images


def fake_hub_images(spec: HubImages, /, *, size: int | None = None) -> Splits[ImageData]:
    """Noise with the image size and the number of classes of a hub set, a few images per class."""
    size = _check_size(size or spec.size)
    names = tuple(f"class {k}" for k in range(spec.n_classes))
    per_class = max(1, min(8, 40_000 // size**2))  # below 250 MB at 224 pixels
    return fake_image_splits(
        spec.name,
        n_train=per_class * spec.n_classes,
        n_test=max(1, per_class // 4) * spec.n_classes,
        shape=(3, size, size),
        class_names=names,
    )


def _check_size(size: int) -> int:
    if not 8 <= size <= 1024:
        raise ValueError(f"size must be between 8 and 1024 pixels, got {size}")
    return size


def load_sst2(*, root: str | Path | None = None) -> Splits[TextData]:
    """Stanford sentiment treebank; `test` is the hub's validation split, because test labels are hidden."""
    parts = [open_hub(SST2, split, root=root) for split in ("train", "validation")]
    data = [TextData(tuple(p["sentence"]), torch.tensor(list(p["label"])), SST2_NAMES) for p in parts]
    return Splits(*data)


def _cached(repository: str) -> str:
    return "huggingface/" + repository.replace("/", "___")


_HOW = f"{EXTRAS}, set $GLOCAL_DATA, and load it once with a network connection"
_TEXT = {
    "cifar10": ("small colour photographs", "50000 + 10000 images, 10 classes", "no formal licence stated"),
    "cifar100": ("small colour photographs", "50000 + 10000 images, 100 classes", "no formal licence stated"),
    "tiny-imagenet": (
        "ImageNet at 64 x 64",
        "100000 + 10000 images, 200 classes",
        "ImageNet: research only",
    ),
    "imagenet-r": (
        "renditions of ImageNet classes",
        "30000 images, 200 classes",
        "no licence checked; images from various owners",
    ),
}
ENTRIES = (
    *(
        Entry(
            name=spec.name,
            summary=_TEXT[spec.name][0],
            kind="images",
            n=_TEXT[spec.name][1],
            licence=_TEXT[spec.name][2],
            source=f"Hugging Face {spec.repository}",
            loader=partial(load_hub_images, spec),
            fake=partial(fake_hub_images, spec),
            local_files=(_cached(spec.repository),),
            how_to_get=_HOW,
            is_embedded=False,
        )
        for spec in HUB_IMAGES
    ),
    Entry(
        name="sst2",
        summary="sentences from film reviews, positive or negative",
        kind="text",
        n="67349 + 872 sentences, 2 classes",
        licence="no formal licence stated; research use",
        source=f"Hugging Face {SST2}",
        loader=load_sst2,
        fake=lambda: fake_texts("sst2", n_train=512, n_test=128, class_names=SST2_NAMES),
        local_files=(_cached(SST2),),
        how_to_get=_HOW,
        is_embedded=False,
    ),
)
