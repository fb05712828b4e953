"""Data of the paper's scale: MNIST, fake job postings and chest X-rays from `$GLOCAL_DATA`."""

import csv
import gzip
import struct
from pathlib import Path

import numpy as np
import torch

from glocal.data.errors import DataError
from glocal.data.roots import data_root
from glocal.data.types import ImageData
from glocal.supervision.sdl_data import Corpus

MNIST_FOLDER = "MNIST/raw"
POSTINGS = "emscad/fake_job_postings.csv"
XRAY_FOLDER = "chest_xray"
TEXT_COLUMNS = ("title", "company_profile", "description", "requirements", "benefits")
FLAGS = ("telecommuting", "has_company_logo", "has_questions")
CATEGORIES = ("employment_type", "required_experience", "required_education", "function")
LARGEST_IDX = 4  # dimensions of an IDX file that we read


def _find(path: Path, repair: str) -> Path:
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    raise DataError(path, "the file is missing", repair)


def read_idx(path: Path) -> np.ndarray:
    """An array of unsigned bytes in the IDX format of MNIST, plain or gzipped.

    Raises:
        DataError: the file is not such an array.
    """
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or not 1 <= raw[3] <= LARGEST_IDX:
        raise DataError(path, "not an IDX file of unsigned bytes", "download it again", problem="corrupt")
    shape = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
    body = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if body.size != int(np.prod(shape)):
        raise DataError(path, f"{body.size} bytes instead of {np.prod(shape)}", "download it again", problem="corrupt")
    return body.reshape(shape)


def load_mnist(root: str | Path | None = None) -> ImageData:
    """The 60,000 training digits of MNIST, from `$GLOCAL_DATA/MNIST/raw` (IDX files, gzipped or not).

    Raises:
        DataError: no data folder, or a file is missing or corrupt.
    """
    folder = data_root(root) / MNIST_FOLDER
    repair = f"put the IDX files of MNIST (for instance from torchvision.datasets.MNIST) into {folder}"
    images, labels = (
        read_idx(_find(folder / f"train-{name}-ubyte", repair)) for name in ("images-idx3", "labels-idx1")
    )
    pixels = torch.from_numpy(images.astype(np.float32) / 255)[:, None]
    return ImageData(pixels, torch.from_numpy(labels.astype(np.int64)), tuple(str(k) for k in range(10)))


def load_postings(root: str | Path | None = None) -> Corpus:
    """EMSCAD, the fake job postings; group 1 is fraudulent. From `$GLOCAL_DATA/emscad/fake_job_postings.csv`.

    Covariates: three flags, one indicator per value of four categorical columns (missing is a value), salary given.

    Raises:
        DataError: no data folder, or the file is missing or lacks a column.
    """
    path = data_root(root) / POSTINGS
    repair = f"put fake_job_postings.csv of the Kaggle set 'Real / Fake Job Posting Prediction' at {path}"
    if not path.is_file():
        raise DataError(path, "the file is missing", repair)
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        needed = {*TEXT_COLUMNS, *FLAGS, *CATEGORIES, "salary_range", "fraudulent"}
        missing = sorted(needed - set(reader.fieldnames or ()))
        if missing:
            raise DataError(path, f"columns {', '.join(missing)} are missing", repair, problem="corrupt")
        rows = list(reader)
    names = [*FLAGS, "salary given"]
    columns = [[float(row[flag] or 0) for row in rows] for flag in FLAGS]
    columns.append([float(bool(row["salary_range"])) for row in rows])
    for category in CATEGORIES:
        for value in sorted({row[category] for row in rows}):
            names.append(f"{category}={value or 'missing'}")
            columns.append([float(row[category] == value) for row in rows])
    texts = tuple(" ".join(row[column] for column in TEXT_COLUMNS).lower() for row in rows)
    groups = torch.tensor([int(row["fraudulent"]) for row in rows])
    return Corpus(texts, groups, ("real", "fraudulent"), torch.tensor(columns).double().T.contiguous(), tuple(names))


def load_xrays(size: int, root: str | Path | None = None) -> ImageData:
    """Chest X-rays, class 1 is pneumonia, grey and resized, from `$GLOCAL_DATA/chest_xray/*/{NORMAL,PNEUMONIA}/*.jpeg`.

    Raises:
        DataError: no data folder or no images of a class.
    """
    from PIL import Image

    folder = data_root(root) / XRAY_FOLDER
    images, labels, names = [], [], ("NORMAL", "PNEUMONIA")
    for label, name in enumerate(names):
        files = sorted(folder.glob(f"*/{name}/*.jpeg"))
        if not files:
            repair = f"unpack the Kaggle set 'Chest X-Ray Images (Pneumonia)' into {folder}"
            raise DataError(folder, f"there are no images */{name}/*.jpeg", repair)
        for file in files:
            with Image.open(file) as image:
                images.append(torch.from_numpy(np.asarray(image.convert("L").resize((size, size)), np.float32) / 255))
            labels.append(label)
    return ImageData(torch.stack(images)[:, None], torch.tensor(labels), names)
