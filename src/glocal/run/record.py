"""Recording full-scale runs: from a run folder into `book/results`, where the scoreboard finds them."""

from pathlib import Path
from typing import Any

from glocal.book.catalogue import Chapter, chapter
from glocal.run.files import read_json, write_json

KEPT_PACKAGES = ("python", "torch", "numpy", "scipy", "scikit-learn", "torch-geometric", "cvxpy", "glocal")


class RecordError(Exception):
    """A run that cannot be recorded; the message says why and what to do."""


def record(folder: Path, root: Path) -> tuple[Chapter, Path]:
    """Add a finished full-scale run to the chapter's recorded results, atomically.

    A run with the same parameters and sources replaces the earlier one.

    Args:
        folder: a run's folder, `runs/<slug>/<stamp>`.
        root: the project's folder.

    Returns:
        The chapter and the file that was written.

    Raises:
        RecordError: if the folder holds no finished full-scale run with a verdict.
    """
    result, origin = read_json(folder / "result.json"), read_json(folder / "provenance.json")
    if not isinstance(result, dict) or not isinstance(origin, dict):
        raise RecordError(f"{folder} holds no run: it needs result.json and provenance.json")
    if result.get("status") != "done":
        raise RecordError(f"the run in {folder} failed ({result.get('error')}): only finished runs are recorded")
    if origin.get("scale") != "full":
        raise RecordError(
            f"the run in {folder} is of scale '{origin.get('scale')}': record a run of `glocal run SLUG --full`"
        )
    verdict = result.get("verdict")
    if not verdict:
        raise RecordError(f"the notebook in {folder} carries no verdict")
    entry = chapter(str(result["slug"]), root)
    run = {
        "parameters": origin["parameters"],
        "start": origin["start"],
        "end": origin["end"],
        "source_hash": origin["source_hash"],
        "git": origin["git"],
        "hardware": origin["hardware"],
        "packages": {k: v for k, v in origin["packages"].items() if k in KEPT_PACKAGES},
        "data": origin["data"],
        "cpu_seconds": result["cpu_seconds"],
        "wall_seconds": result["wall_seconds"],
        "peak_memory_gb": result["peak_memory_gb"],
        "verdict": verdict,
    }
    runs = [earlier for earlier in recorded_runs(entry) if not _same(earlier, run)]
    write_json(entry.recorded, {"slug": entry.slug, "runs": [*runs, run]})
    return entry, entry.recorded


def recorded_runs(entry: Chapter) -> list[dict[str, Any]]:
    """The recorded full-scale runs of a chapter, oldest first."""
    stored = read_json(entry.recorded)
    return list(stored["runs"]) if isinstance(stored, dict) and "runs" in stored else []


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one.get(key) == other[key] for key in ("parameters", "source_hash"))
