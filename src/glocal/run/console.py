"""What a batch shows in the terminal: one progress bar per running chapter and a table at the end."""

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from glocal.run.job import Outcome

COLOURS = {"holds": "green", "fails": "red", "inconclusive": "yellow", "full-scale": "dim"}


class BatchDisplay:
    """Progress of a batch on a terminal; silent where nobody looks (`quiet`, or no terminal)."""

    def __init__(self, console: Console, slugs: list[str], *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("cells"),
            TimeElapsedColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._slugs = slugs

    def __enter__(self) -> "BatchDisplay":
        self._progress.start()
        for slug in self._slugs:
            self._tasks[slug] = self._progress.add_task(slug, total=None, start=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if isinstance(error, KeyboardInterrupt) and not self._quiet:
            self._console.print(
                "Interrupted. Finished chapters are kept; give the same command again to run the others.",
                style="yellow",
            )

    def tick(self, cells: dict[str, tuple[int, int]]) -> None:
        """Show how many cells each running chapter has done."""
        for slug, (done, total) in cells.items():
            self._progress.start_task(self._tasks[slug])
            self._progress.update(self._tasks[slug], completed=done, total=total)

    def finish(self, outcome: Outcome) -> None:
        """Show that a chapter ended."""
        if outcome.slug in self._tasks:
            self._progress.remove_task(self._tasks.pop(outcome.slug))
        if self._quiet:
            return
        if outcome.status == "done":
            self._console.print(f"[green]✓[/] {outcome.slug} ({outcome.wall_seconds:.0f} s)", highlight=False)
        else:
            self._console.print(f"[red]✗[/] {outcome.slug}: {escape(outcome.error)}", soft_wrap=True, highlight=False)

    def summary(self, console: Console, outcomes: list[Outcome]) -> None:
        """Print what came out of the batch: statuses of claims, time, memory and where the files are."""
        table = Table("chapter", "result", "CPU s", "wall s", "GB")
        for outcome in outcomes:
            table.add_row(
                outcome.slug,
                _result(outcome),
                f"{outcome.cpu_seconds:.1f}",
                f"{outcome.wall_seconds:.1f}",
                f"{outcome.peak_memory_gb:.2f}",
            )
        console.print(table)
        for outcome in outcomes:
            if outcome.folder:
                console.print(outcome.folder, highlight=False, soft_wrap=True)


def _result(outcome: Outcome) -> str:
    """The outcome of a chapter in one cell: its claims by status, or what went wrong."""
    if outcome.status != "done":
        return f"[red]{outcome.status}[/]: {escape(outcome.error)}"
    if outcome.verdict is None:
        return "no verdict"
    if outcome.verdict["scale"] == "rehearsal":
        return "rehearsed"
    by_status: dict[str, list[str]] = {}
    for claim in outcome.verdict["claims"]:
        by_status.setdefault(claim["status"], []).append(claim["id"])
    return "\n".join(f"[{COLOURS[status]}]{status}[/]: {' '.join(ids)}" for status, ids in by_status.items())


def print_diagnosis(console: Console, found: dict[str, Any]) -> None:
    """Print what `glocal doctor` found."""
    machine = found["hardware"]
    console.print(f"Python {found['python']} on {machine['platform']}", highlight=False)
    gpus = ", ".join(machine["gpus"]) or "none that torch can use: full-scale runs need one, --rehearse does not"
    console.print(
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB; GPU: {gpus}",
        highlight=False,
    )
    for file, states in found["requirements"].items():
        details = "; ".join(f"{name} {state}" for name, state in list(states.items())[:4])
        more = f" and {len(states) - 4} more" if len(states) > 4 else ""
        console.print(f"{file}: {escape(details + more) or 'complete'}", highlight=False, soft_wrap=True)
    states = [entry["state"] for entry in found["data"].values()]
    console.print(
        f"data: {states.count('ready')} ready, {states.count('missing')} missing, {states.count('corrupt')} corrupt "
        f"(details: glocal data); GLOCAL_DATA={found['data_folder'] or 'not set'}",
        highlight=False,
    )
    recorded = ", ".join(f"{slug} ({n} recorded)" for slug, n in found["chapters"].items())
    console.print(f"chapters: {recorded}", highlight=False)
    for problem in found["problems"]:
        console.print(f"[red]✗[/] {escape(problem)}", soft_wrap=True, highlight=False)
    if not found["problems"]:
        console.print("[green]✓[/] everything that the book and its tests need is here")
