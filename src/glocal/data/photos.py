"""`photos`: the photographs that scikit-image ships inside its wheel, read without a download."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from glocal.data.entry import Entry
from glocal.data.errors import DataError
from glocal.data.files import Wheel, WheelFile, verified
from glocal.data.types import PhotoData
from glocal.seeding import torch_generator

SKIMAGE = Wheel("scikit-image", "0.26.0", "requirements.txt")


@dataclass(frozen=True)
class Photo:
    """One photograph; the licence is the one its documentation in scikit-image states."""

    name: str
    file_name: str
    licence: str
    sha256: str

    @property
    def file(self) -> WheelFile:
        """Where it lies in the wheel."""
        return WheelFile(SKIMAGE, f"skimage/data/{self.file_name}", self.sha256)


PHOTOS = (
    Photo(
        "astronaut",
        "astronaut.png",
        "public domain (NASA)",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    ),
    Photo("brick", "brick.png", "CC0", "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf"),
    Photo("camera", "camera.png", "CC0", "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a"),
    Photo("cell", "cell.png", "CC0", "8d23a7fb81f7cc877cd09f330357fc7f595651306e84e17252f6e0a1b3f61515"),
    Photo("chelsea", "chelsea.png", "CC0", "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb"),
    Photo(
        "clock", "clock_motion.png", "public domain", "f029226b28b642e80113d86622e9b215ee067a0966feaf5e60604a1e05733955"
    ),
    Photo("coffee", "coffee.png", "CC0", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"),
    Photo(
        "coins",
        "coins.png",
        "no known restrictions (Brooklyn Museum)",
        "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
    ),
    Photo("colorwheel", "color.png", "not stated", "7d2df993de2b4fa2a78e04e5df8050f49a9c511aa75e59ab3bd56ac9c98aef7e"),
    Photo("grass", "grass.png", "CC0", "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89"),
    Photo("gravel", "gravel.png", "CC0", "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12"),
    Photo("horse", "horse.png", "CC0", "c7fb60789fe394c485f842291ea3b21e50d140f39d6dcb5fb9917cc178225455"),
    Photo(
        "hubble_deep_field",
        "hubble_deep_field.jpg",
        "public domain (NASA)",
        "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
    ),
    Photo(
        "immunohistochemistry",
        "ihc.png",
        "no known restrictions",
        "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
    ),
    Photo("moon", "moon.png", "not stated", "78739619d11f7eb9c165bb5d2efd4772cee557812ec847532dbb1d92ef71f577"),
    Photo(
        "motorcycle",
        "motorcycle_left.png",
        "Middlebury stereo 2014, terms not stated in the wheel",
        "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
    ),
    Photo("page", "page.png", "not stated", "341a6f0a61557662b02734a9b6e56ec33a915b2c41886b97509dedf2a43b47a3"),
    Photo("retina", "retina.jpg", "CC0", "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6"),
    Photo(
        "rocket",
        "rocket.jpg",
        "public domain (SpaceX)",
        "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    ),
    Photo("text", "text.png", "public domain", "bd84aa3a6e3c9887850d45d606c96b2e59433fbef50338570b63c319e668e6d1"),
)
PHOTO_NAMES = tuple(photo.name for photo in PHOTOS)
# pictures of things: without scanned text, a silhouette and a colour chart
NATURAL = tuple(name for name in PHOTO_NAMES if name not in ("colorwheel", "horse", "page", "text"))


def load_photos(*, names: Sequence[str] | None = None, short_side: int | None = None) -> PhotoData:
    """Photographs as colour pictures of their own sizes; grey ones have three equal channels.

    Args:
        names: which photographs, in this order; all 20 by default.
        short_side: resize (Lanczos) so that the shorter side has this many pixels, 16 to 2000.

    Raises:
        ValueError: an unknown name or a size out of range.
        DataError: a file of scikit-image is missing or corrupt.
    """
    chosen = _check_options(names, short_side)
    images = tuple(_read(photo, short_side) for photo in chosen)
    return PhotoData(images, tuple(photo.name for photo in chosen), tuple(photo.licence for photo in chosen))


def fake_photos(*, names: Sequence[str] | None = None, short_side: int | None = None) -> PhotoData:
    """Noise in place of the photographs, each `short_side` (64 by default) times one and a half of it."""
    chosen = _check_options(names, short_side)
    side = short_side or 64
    images = tuple(
        torch.rand((3, side, side * 3 // 2), generator=torch_generator(0, "fake", "photos", photo.name))
        for photo in chosen
    )
    return PhotoData(images, tuple(photo.name for photo in chosen), tuple(photo.licence for photo in chosen))


def _check_options(names: Sequence[str] | None, short_side: int | None) -> tuple[Photo, ...]:
    if short_side is not None and not 16 <= short_side <= 2000:
        raise ValueError(f"short_side must be between 16 and 2000 pixels, got {short_side}")
    by_name = {photo.name: photo for photo in PHOTOS}
    for name in names or ():
        if name not in by_name:
            raise ValueError(f"names must be among {', '.join(by_name)}; got {name!r}")
    return PHOTOS if names is None else tuple(by_name[name] for name in names)


def _read(photo: Photo, short_side: int | None) -> torch.Tensor:
    path = verified(photo.file)
    try:
        with Image.open(path) as stored:
            picture = stored.convert("RGBA" if stored.mode == "RGBA" else "RGB")
    except OSError as error:
        raise DataError(
            path, f"the picture cannot be decoded ({error})", SKIMAGE.reinstall, problem="corrupt"
        ) from error
    if picture.mode == "RGBA":  # on white paper
        paper = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(paper, picture).convert("RGB")
    if short_side is not None:
        scale = short_side / min(picture.size)
        width, height = (max(short_side, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div_(255)


ENTRIES = (
    Entry(
        name="photos",
        summary="the photographs inside scikit-image: people, animals, things, textures, microscopy, space",
        kind="photographs",
        n=f"{len(PHOTOS)} photographs",
        licence="mostly CC0 or public domain, one by one in `PhotoData.licences`; wheel BSD-3-Clause",
        source=f"wheel {SKIMAGE.name} {SKIMAGE.version}",
        loader=load_photos,
        fake=fake_photos,
        files=tuple(photo.file for photo in PHOTOS),
    ),
)
