"""What a run consists of: which chapters, with which parameters, on which device."""

from pathlib import Path
from typing import Any

from glocal.book.catalogue import Chapter, chapter, chapters
from glocal.run.parameters import ParameterError, full_scale_values, validate


def select_chapters(slugs: list[str] | None, everything: bool, root: Path) -> list[Chapter]:
    """The chapters named, without repetitions, or all of them.

    Raises:
        ParameterError: if none is named.
        CatalogueError: if one does not exist.
    """
    if everything:
        return chapters(root)
    if not slugs:
        raise ParameterError("name at least one chapter, or use --all; `glocal list` shows them")
    return [chapter(slug, root) for slug in dict.fromkeys(slugs)]


def run_parameters(entry: Chapter, scale: str, overrides: dict[str, Any], gpus: int) -> dict[str, Any]:
    """Checked parameters of a run: the full-scale file, then the overrides, then the device if none was named.

    A rehearsal always uses the CPU; otherwise a GPU is used where there is one.

    Raises:
        ParameterError: for an unknown or ill-typed parameter, or a GPU asked for and absent.
    """
    values = {} if scale == "small" else full_scale_values(entry)
    values |= validate(entry, overrides)
    if scale == "rehearsal":
        values["device"] = "cpu"
    elif "device" not in values and gpus:
        values["device"] = "cuda"
    device = str(values.get("device", "cpu"))
    if device.startswith("cuda") and not gpus:
        raise ParameterError(
            f"device '{device}' was asked for, but torch finds no GPU here: leave the device out, use "
            "-p device=cpu, or install a torch build for your GPU (`glocal doctor` shows what is there)"
        )
    return values


def usable_gpus() -> int:
    """Number of GPUs that torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
