"""Running many chapters: a batch that survives interruption, on a process pool or through submitit."""

import hashlib
import json
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil

from glocal.book.catalogue import chapter
from glocal.book.notebooks import source_hash
from glocal.run.files import read_json, write_json
from glocal.run.job import PARTIAL, Job, Outcome, finished_runs, run_job, sweep_partial

POLL_SECONDS = 0.2
OnOutcome = Callable[[Outcome], None]
OnTick = Callable[[dict[str, tuple[int, int]]], None]


@dataclass(frozen=True)
class Batch:
    """Jobs that were asked for together, and what is already there from an interrupted attempt.

    Args:
        path: the file that marks the batch as unfinished.
        jobs: all jobs, marked with the batch's name.
        finished: outcomes of an earlier attempt.
    """

    path: Path
    jobs: tuple[Job, ...]
    finished: tuple[Outcome, ...]

    @property
    def remaining(self) -> list[Job]:
        """The jobs that still have to run."""
        done = {outcome.slug for outcome in self.finished}
        return [job for job in self.jobs if job.slug not in done]

    def close(self) -> None:
        """Mark the batch as complete: asking for the same jobs again starts a new one."""
        self.path.unlink(missing_ok=True)


def open_batch(jobs: Iterable[Job], *, fresh: bool = False) -> Batch:
    """Open the batch of these jobs: a new one, or the unfinished one with the same jobs, parameters and sources.

    Args:
        jobs: one per chapter, all with the same `out`.
        fresh: forget an unfinished attempt and start over.
    """
    jobs = list(jobs)
    out = jobs[0].out
    described = [[job.slug, job.scale, job.parameters, source_hash(chapter(job.slug, job.root))] for job in jobs]
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]
    path = out / ".batches" / f"{key}.json"
    state = None if fresh else read_json(path)
    if not isinstance(state, dict) or "batch" not in state:
        state = {"batch": f"{key}-{secrets.token_hex(4)}", "slugs": [job.slug for job in jobs]}
        write_json(path, state)
    name = str(state["batch"])
    finished = []
    for job in jobs:
        sweep_partial(out, job.slug)
        runs = finished_runs(out, job.slug, name)
        if runs:
            finished.append(Outcome(**runs[-1]))
    return Batch(path, tuple(replace(job, batch=name) for job in jobs), tuple(finished))


def run_on_pool(
    jobs: list[Job],
    *,
    n_workers: int,
    gpus: int = 0,
    on_outcome: OnOutcome,
    on_tick: OnTick = lambda cells: None,
) -> None:
    """Run jobs on a pool of processes; each job's kernel is a process of its own.

    Args:
        jobs: what to run.
        n_workers: jobs at a time.
        gpus: if several, each worker sees one of them.
        on_outcome: called with every outcome, in order of completion.
        on_tick: called a few times a second with the cells done and in all, by chapter.

    Raises:
        KeyboardInterrupt: passed on after all workers were ended and their half-written folders removed.
    """
    waiting = list(jobs)
    while waiting:  # one turn, unless a worker is killed from outside and takes the pool with it
        context = get_context("spawn")
        tokens = context.Queue()
        for worker in range(n_workers):
            tokens.put(worker % gpus if gpus > 1 else -1)
        pool = ProcessPoolExecutor(n_workers, mp_context=context, initializer=_set_up_worker, initargs=(tokens,))
        futures = {pool.submit(run_job, job): job for job in waiting}
        try:
            with remembered_interrupts() as is_interrupted:
                waiting = collect(futures, on_outcome, on_tick, is_interrupted)
        except BaseException:
            _end_workers(pool)
            for job in jobs:
                sweep_partial(job.out, job.slug)
            raise
        pool.shutdown(cancel_futures=True)


@contextmanager
def remembered_interrupts() -> Iterator[Callable[[], bool]]:
    """Tells whether Ctrl-C was pressed: an exception that is raised inside a destructor or a callback gets lost."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
        yield pressed.is_set
        return

    def remember(*_: Any) -> None:
        pressed.set()
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, previous)


def collect(
    futures: dict[Future[Outcome], Job], on_outcome: OnOutcome, on_tick: OnTick, is_interrupted: Callable[[], bool]
) -> list[Job]:
    """Hand on outcomes as they come.

    Args:
        futures: the running jobs.
        on_outcome: see `run_on_pool`.
        on_tick: likewise.
        is_interrupted: whether Ctrl-C was pressed, see `remembered_interrupts`; asked a few times a second.

    Returns:
        The jobs that must run again because the pool broke.

    Raises:
        KeyboardInterrupt: if Ctrl-C was pressed.
    """
    pending = set(futures)
    lost: list[Job] = []
    while pending:
        done, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
        on_tick(cells_done(futures[future] for future in pending))
        if is_interrupted():
            raise KeyboardInterrupt
        for future in done:
            job = futures[future]
            try:
                on_outcome(future.result())
            except BrokenProcessPool:
                if (job.out / job.slug).is_dir() and any((job.out / job.slug).glob(f"{PARTIAL}*")):
                    sweep_partial(job.out, job.slug)
                    on_outcome(Outcome(job.slug, "failed", "", error="the worker process was killed"))
                else:
                    lost.append(job)
            except Exception as failure:  # not the chapter's fault: e.g. the disk is full
                on_outcome(Outcome(job.slug, "failed", "", error=f"{type(failure).__name__}: {failure}"))
    return lost


def run_on_cluster(
    jobs: list[Job],
    *,
    cluster: str,
    resources: dict[str, Any] | None = None,
    on_outcome: OnOutcome,
    on_tick: OnTick = lambda cells: None,
) -> None:
    """Run jobs through submitit.

    Args:
        jobs: what to run; `out` must lie on a file system that the nodes share.
        cluster: `"slurm"`, or `"local"` for separate processes on this machine.
        resources: submitit parameters such as `timeout_min`, `mem_gb`, `gpus_per_node`, `slurm_partition`.
        on_outcome: called with every outcome, in order of completion.
        on_tick: called a few times a second with the cells done and in all, by chapter.
    """
    import submitit

    executor = submitit.AutoExecutor(folder=jobs[0].out / ".submitit", cluster=cluster)
    executor.update_parameters(**(resources or {}))
    submitted = [(executor.submit(run_job, job), job) for job in jobs]
    try:
        with remembered_interrupts() as is_interrupted:
            while submitted:
                on_tick(cells_done(job for _, job in submitted))
                if is_interrupted():
                    raise KeyboardInterrupt
                for handle, job in [pair for pair in submitted if pair[0].done()]:
                    submitted.remove((handle, job))
                    try:
                        on_outcome(handle.result())
                    except Exception as failure:  # killed, out of time or memory: the scheduler's words
                        on_outcome(Outcome(job.slug, "failed", "", error=f"{type(failure).__name__}: {failure}"))
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        for handle, _ in submitted:
            handle.cancel()
        raise


def cells_done(jobs: Iterable[Job]) -> dict[str, tuple[int, int]]:
    """Cells done and cells in all of the jobs that are running now, by chapter."""
    cells = {}
    for job in jobs:
        for path in (job.out / job.slug).glob(f"{PARTIAL}*/progress"):
            try:
                done, total = path.read_text(encoding="utf-8").split()
                cells[job.slug] = (int(done), int(total))
            except (OSError, ValueError):
                continue
    return cells


def _set_up_worker(tokens: Any) -> None:
    """In a new worker: take a GPU, leave Ctrl-C to the parent, and end when the parent is gone."""
    gpu = tokens.get()
    if gpu >= 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        _kill_children(os.getpid())
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _end_workers(pool: ProcessPoolExecutor) -> None:
    """Kill the workers of a pool together with their kernels."""
    for process in list((pool._processes or {}).values()):
        _kill_children(process.pid)
        process.kill()
        process.join()
    pool.shutdown(wait=False, cancel_futures=True)


def _kill_children(pid: int | None) -> None:
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return
    for child in children:
        try:
            child.kill()
        except psutil.Error:
            continue
