"""Running one chapter: execute its notebook in a fresh kernel and leave a complete folder behind."""

import os
import shutil
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbformat import NotebookNode

from glocal.book.catalogue import Executable, chapter
from glocal.book.notebooks import read_source, verdict_of
from glocal.run.engine import Usage
from glocal.run.files import read_json, write_json, write_text
from glocal.run.provenance import now, provenance

PARTIAL = ".partial-"
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
)


@dataclass(frozen=True)
class Job:
    """One chapter to run. Plain data, so that it can travel to another process or machine.

    Args:
        root: the project's folder.
        slug: the chapter.
        parameters: checked values that replace the defaults of the parameters cell.
        scale: `"small"`, `"full"` or `"rehearsal"`.
        out: folder that will hold `<slug>/<stamp>/`.
        batch: name of the batch that this run belongs to.
        threads: threads that the kernel's numerical libraries may use.
        timeout: seconds after which a single cell is given up; None for no limit.
    """

    root: Path
    slug: str
    parameters: dict[str, Any]
    scale: str
    out: Path
    batch: str = ""
    threads: int = 1
    timeout: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a job: `status` is `"done"` or `"failed"`; `folder` holds everything else."""

    slug: str
    status: str
    folder: str
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    peak_memory_gb: float = 0.0
    error: str = ""
    verdict: dict[str, Any] | None = field(default=None)

    def to_json(self) -> dict[str, Any]:
        """The outcome as plain data."""
        return asdict(self)


def run_job(job: Job) -> Outcome:
    """Run a chapter into `<out>/<slug>/<stamp>/`: notebook, `result.json`, `provenance.json`.

    The folder is filled under a temporary name and renamed when it is complete, so that a folder with a
    final name is always whole. A failing chapter keeps its partial notebook and its traceback.
    """
    entry = chapter(job.slug, job.root)
    shelf = job.out / job.slug
    shelf.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S") + f"-{job.scale}"
    staging = shelf / f"{PARTIAL}{stamp}-{socket.gethostname()}-{os.getpid()}"
    staging.mkdir()
    record = {**provenance(entry, job.parameters, job.scale), "batch": job.batch, "start": now()}
    usage, started, error = Usage(), time.monotonic(), ""
    notebook = None
    try:
        notebook = execute(
            entry,
            staging / f"{job.slug}.ipynb",
            {**job.parameters, "scale": job.scale},
            usage=usage,
            threads=job.threads,
            timeout=job.timeout,
            on_cell=lambda done, total: write_text(staging / "progress", f"{done} {total}"),
        )
    except Exception as failure:  # whatever a chapter raises is a finding about that chapter
        error = short_error(failure)
        write_text(staging / "traceback.txt", "".join(traceback.format_exception(failure)))
    (staging / "progress").unlink(missing_ok=True)
    final = _free_name(shelf / stamp)
    outcome = Outcome(
        slug=job.slug,
        status="failed" if error else "done",
        folder=str(final),
        cpu_seconds=round(usage.cpu_seconds, 1),
        wall_seconds=round(time.monotonic() - started, 1),
        peak_memory_gb=round(usage.peak_memory / 1e9, 2),
        error=error,
        verdict=verdict_of(notebook) if notebook is not None else None,
    )
    write_json(staging / "provenance.json", {**record, "end": now()})
    write_json(staging / "result.json", outcome.to_json())
    staging.rename(final)
    return outcome


def execute(
    entry: Executable,
    output: Path,
    parameters: dict[str, Any],
    *,
    usage: Usage,
    threads: int = 1,
    timeout: int | None = None,
    on_cell: Callable[[int, int], None] = lambda done, total: None,
) -> NotebookNode:
    """Execute a chapter's source with papermill in a fresh kernel and write the notebook to `output`.

    Raises:
        papermill.PapermillExecutionError: if a cell raises; `output` then holds the cells up to it.
    """
    source = output.with_name(f".source-{output.name}")
    nbformat.write(read_source(entry.source), source)
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    environment |= {"PYDEVD_DISABLE_FILE_VALIDATION": "1", "PYTHONHASHSEED": "0"}
    try:
        return papermill.execute_notebook(
            source,
            output,
            parameters=parameters or None,
            engine_name="glocal",
            kernel_name="python3",
            progress_bar=False,
            execution_timeout=timeout,
            cwd=output.parent,
            usage=usage,
            on_cell=on_cell,
            env=environment,
        )
    finally:
        source.unlink(missing_ok=True)


def short_error(failure: BaseException) -> str:
    """The last lines of an error: what was raised and, for a notebook, in which cell."""
    if isinstance(failure, papermill.PapermillExecutionError):
        return f"{failure.ename}: {failure.evalue} (cell {failure.exec_count})"
    return f"{type(failure).__name__}: {failure}"


def finished_runs(out: Path, slug: str, batch: str) -> list[dict[str, Any]]:
    """Results of the runs of a chapter that belong to a batch and were completed without an error."""
    results = []
    for path in sorted((out / slug).glob("[!.]*/result.json")):
        result, record = read_json(path), read_json(path.with_name("provenance.json"))
        if result and record and record.get("batch") == batch and result.get("status") == "done":
            results.append(result)
    return results


def sweep_partial(out: Path, slug: str) -> None:
    """Remove what runs of this machine that were killed left half-written; live ones are left alone."""
    import psutil

    host = socket.gethostname()
    for folder in (out / slug).glob(f"{PARTIAL}*"):
        owner_host, _, pid = folder.name.rpartition("-")
        if owner_host.endswith(f"-{host}") and not (pid.isdigit() and psutil.pid_exists(int(pid))):
            shutil.rmtree(folder, ignore_errors=True)


def _free_name(path: Path) -> Path:
    """`path`, or `path-2`, `path-3`, ... if it is taken."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
