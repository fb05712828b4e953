"""Histopathology at full scale: tumour against normal tissue in NCT-CRC-HE-100K and in PatchCamelyon.

Both are read from `$GLOCAL_DATA` in the formats in which they are published; nothing is downloaded.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from glocal.data.errors import DataError
from glocal.data.roots import data_root
from glocal.seeding import torch_generator
from glocal.supervision.ood_unlabeled_data import ImagePool

NCT = "NCT-CRC-HE-100K"  # one folder of TIFF files per tissue
PCAM = "camelyonpatch_level_2_split_train"  # HDF5, arrays x and y
TISSUES = ("nct", "pcam")


def tissue_pool(
    name: str, *, side: int = 32, max_per_class: int = 20_000, root: str | Path | None = None, fake: bool = False
) -> ImagePool:
    """Patches of one source, reduced to `side` x `side` pixels by area averaging; class 1 is tumour, 0 normal tissue.

    Args:
        name: `nct` (tissues TUM and NORM, 224 pixels) or `pcam` (96 pixels).
        side: pixels; a divisor of 96 for `pcam`.
        max_per_class: patches to read at most of each class, the first ones in the order of the files.
        root: folder instead of `$GLOCAL_DATA`.
        fake: random stand-in for rehearsals.

    Raises:
        ValueError: for an unknown source.
        DataError: if files are missing, or h5py is not installed.
    """
    if name not in TISSUES:
        raise ValueError(f"tissue sources are {', '.join(TISSUES)}, got {name!r}")
    if fake:
        pixels = torch.rand(120, 3 * side**2, generator=torch_generator(0, "fake tissue", name))
        return ImagePool(pixels, torch.arange(120) % 2)
    folder = data_root(root)
    return _nct(folder / NCT, side, max_per_class) if name == "nct" else _pcam(folder, side, max_per_class)


def _nct(folder: Path, side: int, max_per_class: int) -> ImagePool:
    from PIL import Image

    rows, classes = [], []
    for label, tissue in ((1, "TUM"), (0, "NORM")):
        files = sorted((folder / tissue).glob("*.tif"))[:max_per_class]
        if not files:
            repair = f"unpack NCT-CRC-HE-100K.zip (zenodo.org, record 1214456) into {folder.parent}"
            raise DataError(folder / tissue, "no TIFF files of this tissue", repair)
        for file in files:
            with Image.open(file) as image:
                small = image.convert("RGB").resize((side, side), Image.Resampling.BOX)
                rows.append(torch.from_numpy(np.array(small)))
        classes += [label] * len(files)
    return ImagePool(_rows(torch.stack(rows).float()), torch.tensor(classes))


def _pcam(folder: Path, side: int, max_per_class: int) -> ImagePool:
    paths = {key: folder / f"{PCAM}_{key}.h5" for key in "xy"}
    for path in paths.values():
        if not path.is_file():
            raise DataError(path, "the file does not exist", f"gunzip {path.name}.gz of PatchCamelyon into {folder}")
    try:
        import h5py
    except ImportError:
        raise DataError("PatchCamelyon", "h5py is not installed", "pip install -r requirements-full.txt") from None
    with h5py.File(paths["y"], "r") as file:
        labels = torch.from_numpy(np.array(file["y"]).reshape(-1).astype(np.int64))
    keep = torch.cat([(labels == k).nonzero()[:max_per_class, 0] for k in (0, 1)]).sort().values
    with h5py.File(paths["x"], "r") as file:
        parts = [_averaged(file["x"][part.numpy()], side) for part in keep.split(4096)]
    return ImagePool(_rows(torch.cat(parts)), labels[keep])


def _averaged(images: np.ndarray, side: int) -> Float[Tensor, "n side side 3"]:
    n, size = images.shape[0], images.shape[1]
    blocks = torch.from_numpy(np.asarray(images)).float().reshape(n, side, size // side, side, size // side, 3)
    return blocks.mean((2, 4))


def _rows(images: Float[Tensor, "n h w 3"]) -> Float[Tensor, "n p"]:
    """Values in [0, 1], channels first, one row per image."""
    return images.permute(0, 3, 1, 2).flatten(1) / 255
