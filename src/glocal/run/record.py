"""Recording runs: from a run folder into `book/results`, where the chapter and the scoreboard find them."""

from pathlib import Path
from typing import Any

from glocal.book.catalogue import Chapter, chapter
from glocal.book.notebooks import code_hash
from glocal.book.replication import own_status, recorded_replications, replication_file
from glocal.run.files import read_json, write_json
from glocal.run.parameters import parameters_of

KEPT_PACKAGES = ("python", "torch", "numpy", "scipy", "scikit-learn", "torch-geometric", "cvxpy", "glocal")


class RecordError(Exception):
    """A run that cannot be recorded; the message says why and what to do."""


def record(folder: Path, root: Path) -> tuple[Chapter, Path]:
    """Add a finished run to what is recorded of its chapter, atomically.

    A run at full scale goes to the recorded results, where one with the same parameters and sources is replaced. A run
    at small scale that differs by its seed alone is a replication: it replaces the one with the same seed, and those of
    other code.

    Args:
        folder: a run's folder, `runs/<slug>/<stamp>`.
        root: the project's folder.

    Returns:
        The chapter and the file that was written.

    Raises:
        RecordError: if the folder holds no finished run with a verdict that can be recorded.
    """
    result, origin = read_json(folder / "result.json"), read_json(folder / "provenance.json")
    if not isinstance(result, dict) or not isinstance(origin, dict):
        raise RecordError(f"{folder} holds no run: it needs result.json and provenance.json")
    if result.get("status") != "done":
        raise RecordError(f"the run in {folder} failed ({result.get('error')}): only finished runs are recorded")
    if origin.get("scale") not in ("full", "small"):
        raise RecordError(
            f"the run in {folder} is of scale '{origin.get('scale')}': record a run of `glocal run SLUG --full`, "
            "or of `glocal run SLUG -p seed=1000`"
        )
    if not result.get("verdict"):
        raise RecordError(f"the notebook in {folder} carries no verdict")
    entry = chapter(str(result["slug"]), root)
    if origin["scale"] == "full":
        return entry, _record_result(entry, result, origin)
    return entry, _record_replication(entry, result, origin)


def _record_result(entry: Chapter, result: dict[str, Any], origin: dict[str, Any]) -> Path:
    run = {
        "parameters": origin["parameters"],
        **_circumstances(origin),
        "source_hash": origin["source_hash"],
        "data": origin["data"],
        "cpu_seconds": result["cpu_seconds"],
        "wall_seconds": result["wall_seconds"],
        "peak_memory_gb": result["peak_memory_gb"],
        "verdict": result["verdict"],
    }
    runs = [earlier for earlier in recorded_runs(entry) if not _same(earlier, run)]
    write_json(entry.recorded, {"slug": entry.slug, "runs": [*runs, run]})
    return entry.recorded


def _record_replication(entry: Chapter, result: dict[str, Any], origin: dict[str, Any]) -> Path:
    known = parameters_of(entry)
    changed = sorted(n for n, value in origin["parameters"].items() if n != "seed" and value != known[n].default)
    if changed:
        raise RecordError(
            f"the run of {entry.slug} at small scale sets {', '.join(changed)}: a replication "
            "differs in its seed only (with a GPU, run it with -p device=cpu)"
        )
    code = code_hash(entry)
    if origin.get("code_hash") != code:
        raise RecordError(f"the code of {entry.slug} has changed since this run: run it again, then record it")
    seed = origin["parameters"].get("seed", known["seed"].default)
    run = {
        "seed": seed,
        "code_hash": code,
        **_circumstances(origin),
        "cpu_seconds": result["cpu_seconds"],
        "claims": {c["id"]: {"status": own_status(c), "ours": c["ours"]} for c in result["verdict"]["claims"]},
    }
    try:
        earlier = recorded_replications(entry.slug, entry.root)
    except ValueError as error:
        raise RecordError(str(error)) from error
    kept = [other for other in earlier if other["code_hash"] == code and other["seed"] != seed]
    path = replication_file(entry.slug, entry.root)
    write_json(path, {"slug": entry.slug, "runs": sorted([*kept, run], key=lambda one: int(one["seed"]))})
    return path


def _circumstances(origin: dict[str, Any]) -> dict[str, Any]:
    """When, where and with what a run was made."""
    packages = {name: version for name, version in origin["packages"].items() if name in KEPT_PACKAGES}
    return {**{key: origin[key] for key in ("start", "end", "git", "hardware")}, "packages": packages}


def recorded_runs(entry: Chapter) -> list[dict[str, Any]]:
    """The recorded full-scale runs of a chapter, oldest first."""
    stored = read_json(entry.recorded)
    return list(stored["runs"]) if isinstance(stored, dict) and "runs" in stored else []


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one.get(key) == other[key] for key in ("parameters", "source_hash"))
