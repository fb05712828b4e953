"""A papermill engine that reports progress and measures what the kernel consumed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines


@dataclass
class Usage:
    """What a notebook consumed: CPU seconds (user and system, children included) and peak memory in bytes."""

    cpu_seconds: float = 0.0
    peak_memory: int = 0

    def update(self, pid: int) -> None:
        """Read the counters of process `pid` and its children; a process that is gone keeps the last reading."""
        try:
            process = psutil.Process(pid)
            times = process.cpu_times()
            family = [process, *process.children(recursive=True)]
            memory = sum(member.memory_info().rss for member in family)
            cpu = times.user + times.system + getattr(times, "children_user", 0.0)
            cpu += getattr(times, "children_system", 0.0)
        except psutil.Error:
            return
        self.cpu_seconds = max(self.cpu_seconds, cpu)
        self.peak_memory = max(self.peak_memory, memory)


class MeasuringClient(PapermillNotebookClient):
    """papermill's client, with a reading of the kernel's counters after every cell."""

    usage: Usage
    on_cell: Callable[[int, int], None]
    execute_cell: Callable[..., Any]

    def papermill_execute_cells(self) -> None:
        """Execute all cells in order; stop at the first that raises."""
        pid = self.km.provisioner.pid  # local kernels have one
        execute_cell: Callable[..., Any] = self.execute_cell
        total = len(self.nb.cells)

        def measured(cell: Any, index: int, *args: Any, **kwargs: Any) -> Any:
            try:
                return execute_cell(cell, index, *args, **kwargs)
            finally:
                self.usage.update(pid)
                self.on_cell(index + 1, total)

        self.execute_cell = measured
        super().papermill_execute_cells()


class MeasuringEngine(NBClientEngine):
    """papermill's engine around `MeasuringClient`; `usage` and `on_cell` come as engine arguments."""

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: NotebookExecutionManager,
        kernel_name: str,
        log_output: bool = False,
        stdout_file: Any = None,
        stderr_file: Any = None,
        start_timeout: int = 60,
        execution_timeout: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Execute the notebook held by `nb_man` (called by papermill)."""
        client = MeasuringClient(
            nb_man,
            timeout=execution_timeout,
            startup_timeout=start_timeout,
            kernel_name=kernel_name,
            log_output=log_output,
            stdout_file=stdout_file,
            stderr_file=stderr_file,
            extra_arguments=["--log-level=50"],  # a local kernel need not encrypt, and being killed is no error
        )
        client.usage = kwargs["usage"]
        client.on_cell = kwargs["on_cell"]
        client.execute(env=kwargs["env"])


papermill_engines.register("glocal", MeasuringEngine)
