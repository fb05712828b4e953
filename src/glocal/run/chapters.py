"""Regenerating `book/chapters`: execute what changed and store notebooks without anything that drifts."""

import shutil
import tempfile
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from glocal.book.catalogue import Executable
from glocal.book.notebooks import code_cells, code_hash, is_stale, read_executed, read_source, source_hash
from glocal.run.engine import Usage
from glocal.run.files import write_text
from glocal.run.job import execute, short_error
from glocal.run.speed import reference_work

MEASURED = ("code_hash", "cpu_seconds", "reference_seconds", "peak_memory_gb")


@dataclass(frozen=True)
class Execution:
    """What became of regenerating one chapter; `error` is empty if it went well."""

    slug: str
    cpu_seconds: float
    error: str = ""
    kept: str = ""


def stale(chapters: Sequence[Executable]) -> list[Executable]:
    """The chapters and pages whose source or code changed since their outputs were stored."""
    return [chapter for chapter in chapters if is_stale(chapter)]


def renew_text(chapter: Executable) -> bool:
    """Put new prose around stored outputs, without executing anything, if the code that made them is the same.

    Returns:
        Whether it was done; if not, the chapter has to be executed.
    """
    try:
        stored = read_executed(chapter.notebook)
    except (OSError, ValueError):
        return False
    origin = stored.metadata.get("glocal", {})
    if origin.get("code_hash") != code_hash(chapter):
        return False
    renewed = read_source(chapter.source)
    for old, new in zip(code_cells(stored), code_cells(renewed), strict=True):
        new.outputs, new.execution_count = old.outputs, old.execution_count
    for cell in renewed.cells:
        cell.metadata.setdefault("tags", [])  # as papermill does
    measured = {key: origin[key] for key in MEASURED if key in origin}
    header = {**renewed.metadata.get("glocal", {}), "hash": source_hash(chapter), **measured}
    renewed.metadata = {**stored.metadata, **renewed.metadata, "glocal": header}
    write_text(chapter.notebook, nbformat.writes(renewed) + "\n")
    return True


def regenerate(
    chapters: Sequence[Executable], *, n_workers: int, on_done: Callable[[Execution], None] = lambda execution: None
) -> list[Execution]:
    """Execute chapters at small scale, one core each, and store them in `book/chapters`.

    A chapter that raises leaves its stored notebook as it was; what it executed so far is kept under
    `_build/failed` for inspection.
    """
    results = []
    with ProcessPoolExecutor(max(1, n_workers), mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(regenerate_one, chapter) for chapter in chapters]):
            results.append(future.result())
            on_done(results[-1])
    return results


def regenerate_one(chapter: Executable) -> Execution:
    """Execute one chapter at small scale and store the result."""
    usage, reference = Usage(), [reference_work()]
    digests = {"hash": source_hash(chapter), "code_hash": code_hash(chapter)}
    with tempfile.TemporaryDirectory(prefix="glocal-") as folder:
        output = Path(folder) / f"{chapter.slug}.ipynb"
        try:
            notebook = execute(chapter, output, {}, usage=usage)
        except Exception as failure:  # whatever a chapter raises is a finding about that chapter
            kept = chapter.root / "_build" / "failed" / f"{chapter.slug}.ipynb"
            kept.parent.mkdir(parents=True, exist_ok=True)
            if output.exists():
                shutil.copy(output, kept)
            write_text(kept.with_suffix(".txt"), "".join(traceback.format_exception(failure)))
            return Execution(chapter.slug, usage.cpu_seconds, short_error(failure), str(kept))
    reference.append(reference_work())
    normalise(notebook)
    notebook.metadata["glocal"] = {
        **notebook.metadata.get("glocal", {}),
        **digests,
        "cpu_seconds": round(usage.cpu_seconds, 1),
        "reference_seconds": round(sum(reference) / 2, 2),
        "peak_memory_gb": round(usage.peak_memory / 1e9, 2),
    }
    write_text(chapter.notebook, nbformat.writes(notebook) + "\n")
    return Execution(chapter.slug, usage.cpu_seconds)


def normalise(notebook: NotebookNode) -> None:
    """Drop times, paths and counters that change from one execution to the next."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata.pop("widgets", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            for output in cell.outputs:
                output.get("metadata", {}).pop("papermill", None)
