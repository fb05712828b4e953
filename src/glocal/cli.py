"""The command line: `glocal list | run | execute | check | data | record | scoreboard | new | doctor`."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from glocal.book.catalogue import (
    CatalogueError,
    Executable,
    chapter,
    chapters,
    code_pages,
    papers,
    part_titles,
    project_root,
)
from glocal.run.console import BatchDisplay, print_diagnosis
from glocal.run.parameters import ParameterError, full_scale_values, parameters_of, parse_overrides
from glocal.run.record import RecordError
from glocal.run.selection import run_parameters, select_chapters, usable_gpus

app = typer.Typer(
    name="glocal",
    help="Local to Global: sixty-six papers you can run.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console()
err = Console(stderr=True)
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
USER_ERRORS = (CatalogueError, ParameterError, RecordError, PermissionError)


def main() -> None:
    """Entry point: run a command; errors of the user get one clear message and exit code 2."""
    try:
        app()
    except USER_ERRORS as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("interrupted", style="yellow")
        sys.exit(130)


def print_json(value: Any) -> None:
    """Print `value` as JSON to standard output."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


@app.command("list")
def list_chapters(
    as_json: JsonFlag = False, planned: Annotated[bool, typer.Option(help="Planned papers too.")] = False
) -> None:
    """List the chapters, part by part."""
    root = project_root()
    written = {entry.slug: entry for entry in chapters(root)}
    rows = [
        {
            "slug": paper.slug,
            "part": paper.part,
            "title": paper.title,
            "arxiv": paper.arxiv,
            "written": paper.slug in written,
        }
        for paper in papers()
        if planned or paper.slug in written
    ]
    if as_json:
        print_json(rows)
        return
    table = Table("chapter", "part", "paper", "arXiv")
    for row in rows:
        style = "" if row["written"] else "dim"
        table.add_row(*(escape(str(row[key])) for key in ("slug", "part", "title", "arxiv")), style=style)
    out.print(table)


@app.command()
def run(
    slugs: Annotated[list[str] | None, typer.Argument(help="Chapters to run.")] = None,
    all_chapters: Annotated[bool, typer.Option("--all", help="Run every chapter.")] = False,
    full: Annotated[bool, typer.Option("--full", help="The paper's own scale (SLUG.full.yaml).")] = False,
    rehearse: Annotated[bool, typer.Option("--rehearse", help="Two steps per loop on fake data, on the CPU.")] = False,
    assignments: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="name=value, checked against the chapter.")
    ] = None,
    folder: Annotated[Path, typer.Option("--out", help="Folder for the results.")] = Path("runs"),
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=0, help="Chapters at a time; 0: one per core or GPU.")] = 0,
    executor: Annotated[str, typer.Option(help="pool, slurm, or local (submitit without a cluster).")] = "pool",
    slurm: Annotated[
        list[str] | None,
        typer.Option("--slurm-option", help="name=value for submitit, e.g. slurm_partition=gpu."),
    ] = None,
    timeout: Annotated[int | None, typer.Option(min=1, help="Seconds that one cell may take.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ignore an unfinished batch and start over.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run chapters: small by default, at the paper's own scale with --full.

    Results go to OUT/SLUG/STAMP: the executed notebook, result.json and provenance.json. A batch that was
    interrupted goes on where it stopped when the same command is given again.
    """
    from glocal.run.batch import open_batch, run_on_cluster, run_on_pool
    from glocal.run.files import writable_folder
    from glocal.run.job import Job

    if executor not in ("pool", "slurm", "local"):
        raise ParameterError(f"--executor must be pool, slurm or local, got '{executor}'")
    if rehearse and not full:
        raise ParameterError("--rehearse rehearses the full scale: use it as `glocal run SLUG --full --rehearse`")
    root = project_root()
    selected = select_chapters(slugs, all_chapters, root)
    scale = "rehearsal" if rehearse else "full" if full else "small"
    gpus = 0 if rehearse else usable_gpus()
    overrides = parse_overrides(assignments or [])
    target = writable_folder(folder.resolve())
    cores = os.cpu_count() or 1
    n_workers = min(len(selected), jobs or (gpus if gpus and scale == "full" else cores))
    batch = open_batch(
        [
            Job(
                root=root,
                slug=entry.slug,
                parameters=run_parameters(entry, scale, overrides, gpus),
                scale=scale,
                out=target,
                threads=max(1, cores // n_workers) if scale == "full" else 1,
                timeout=timeout,
            )
            for entry in selected
        ],
        fresh=fresh,
    )
    outcomes = list(batch.finished)
    if outcomes and not as_json:
        names = ", ".join(outcome.slug for outcome in outcomes)
        err.print(f"Going on with an unfinished batch: {names} done already (--fresh starts over).")
    with BatchDisplay(err, [job.slug for job in batch.remaining], quiet=as_json) as display:

        def on_outcome(outcome: Any) -> None:
            outcomes.append(outcome)
            display.finish(outcome)

        if batch.remaining and executor == "pool":
            run_on_pool(batch.remaining, n_workers=n_workers, gpus=gpus, on_outcome=on_outcome, on_tick=display.tick)
        elif batch.remaining:
            options = parse_overrides(slurm or [])
            run_on_cluster(
                batch.remaining,
                cluster=executor,
                resources=options,
                on_outcome=on_outcome,
                on_tick=display.tick,
            )
    failed = [outcome for outcome in outcomes if outcome.status != "done"]
    if not failed:
        batch.close()
    if as_json:
        print_json([outcome.to_json() for outcome in outcomes])
    else:
        display.summary(out, outcomes)
    if failed:
        raise typer.Exit(1)


@app.command()
def execute(
    slugs: Annotated[list[str] | None, typer.Argument(help="Chapters or pages; all if none is given.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also where nothing changed.")] = False,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=0, help="Chapters at a time; 0: one per core.")] = 0,
) -> None:
    """Regenerate the stored outputs of chapters whose source or code changed; new prose alone executes nothing."""
    from glocal.run.chapters import regenerate, renew_text, stale

    root = project_root()
    pages = {page.slug: page for page in code_pages(root)}
    selected: list[Executable] = [pages[slug] for slug in slugs or pages if slug in pages]
    named = [slug for slug in slugs or [] if slug not in pages]
    if named or not slugs:
        selected += select_chapters(named, not slugs, root)
    todo = selected if force else stale(selected)
    if not todo:
        out.print(f"{len(selected)} chapters and pages, all outputs are up to date")
        return
    if not force:
        renewed = [entry for entry in todo if renew_text(entry)]
        for entry in renewed:
            out.print(f"{entry.slug}: text renewed; its code is the same, so the stored outputs are kept")
        todo = [entry for entry in todo if entry not in renewed]
        if not todo:
            return
    with err.status(f"executing {', '.join(entry.slug for entry in todo)}"):
        results = regenerate(todo, n_workers=jobs or os.cpu_count() or 1)
    for result in results:
        if result.error:
            out.print(f"[red]{result.slug} failed[/]: {escape(result.error)}\n  kept: {result.kept}")
        else:
            out.print(f"{result.slug}: executed in {result.cpu_seconds:.1f} s of CPU time")
    if any(result.error for result in results):
        raise typer.Exit(1)


@app.command()
def check(as_json: JsonFlag = False) -> None:
    """Check that the files of all chapters belong together and that stored outputs are fresh."""
    from glocal.run.check import problems

    found = problems(project_root())
    if as_json:
        print_json(found)
    else:
        for problem in found:
            out.print(f"[red]✗[/] {escape(problem)}", soft_wrap=True)
        if not found:
            out.print("[green]✓[/] all chapters are complete and fresh")
    if found:
        raise typer.Exit(1)


@app.command()
def data(
    names: Annotated[list[str] | None, typer.Argument(help="Data sets; all if none is given.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the data sets: what they are, their licence, and whether they are present and intact."""
    from glocal.data import registry

    try:
        entries = [registry.entry(name) for name in names] if names else list(registry.entries().values())
    except ValueError as error:
        raise ParameterError(str(error)) from error
    rows = []
    for entry in entries:
        status = registry.status(entry.name)
        row = {name: getattr(entry, name) for name in ("name", "summary", "kind", "n", "licence", "source")}
        rows.append({**row, "embedded": entry.is_embedded, "state": status.state, "detail": status.detail})
        rows[-1]["repair"] = status.repair
    if as_json:
        print_json(rows)
        return
    table = Table("data set", "kind", "size", "state")
    colours = {"ready": "green", "missing": "yellow", "corrupt": "red"}
    for row in rows:
        state = f"[{colours[str(row['state'])]}]{row['state']}[/]"
        table.add_row(str(row["name"]), str(row["kind"]), str(row["n"]), state)
    out.print(table)
    for row in rows if names else []:
        for label in ("summary", "source", "licence", "detail"):
            out.print(f"{label}: {escape(str(row[label]))}", highlight=False)
    for row in rows:
        if row["state"] == "corrupt" or (row["state"] == "missing" and (row["embedded"] or names)):
            out.print(f"{row['name']}: {escape(str(row['detail']))}\n  repair: {escape(str(row['repair']))}")


@app.command()
def record(folders: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")]) -> None:
    """Record runs in book/results: full-scale ones as results, small ones with another seed as replications."""
    from glocal.run.record import record as record_run

    for folder in folders:
        entry, path = record_run(folder, project_root())
        out.print(f"{entry.slug}: recorded in {path}. Build the book to see it.", soft_wrap=True)


@app.command()
def scoreboard(as_json: JsonFlag = False) -> None:
    """Show the state of every paper and the status of every claim."""
    from glocal.book.scoreboard import scoreboard as make_scoreboard

    board = make_scoreboard(project_root())
    if as_json:
        print_json(board)
        return
    colours = {"holds": "green", "fails": "red", "inconclusive": "yellow", "full-scale": "dim"}
    table = Table("chapter", "claim", "statement", "status", "full scale")
    for paper in board["papers"]:
        for position, claim in enumerate(paper["claims"]):
            table.add_row(
                paper["slug"] if position == 0 else "",
                claim["id"],
                escape(claim["statement"]),
                f"[{colours[claim['status']]}]{claim['status']}[/]",
                claim["full"]["status"] if claim["full"] else "",
            )
    out.print(table)
    out.print(", ".join(f"{name}: {number}" for name, number in board["totals"].items()))


@app.command()
def new(
    part: Annotated[str, typer.Argument(help=f"Part of the book: {', '.join(part_titles())}.")],
    slug: Annotated[str, typer.Argument(help="A paper of the list.")],
) -> None:
    """Create the files of a new chapter; the checks fail until they are filled in."""
    from glocal.run.scaffold import scaffold

    root = project_root()
    for path in scaffold(part, slug, root):
        out.print(f"wrote {path.relative_to(root)}", highlight=False)
    out.print(f"Fill in every TODO, then: glocal execute {slug} && glocal check", highlight=False)


@app.command()
def doctor(as_json: JsonFlag = False) -> None:
    """Tell what is installed, which data are present, whether there is a GPU, and what would not run."""
    from glocal.run.doctor import diagnosis

    found = diagnosis(project_root())
    if as_json:
        print_json(found)
    else:
        print_diagnosis(out, found)
    if found["problems"]:
        raise typer.Exit(1)


@app.command()
def parameters(slug: Annotated[str, typer.Argument(help="A chapter.")], as_json: JsonFlag = False) -> None:
    """Show the parameters of a chapter with their defaults and full-scale values."""
    entry = chapter(slug, project_root())
    full = full_scale_values(entry)
    rows = [
        {
            "name": p.name,
            "type": p.type,
            "default": p.default,
            "full": full.get(p.name, p.default),
            "help": p.help,
        }
        for p in parameters_of(entry).values()
    ]
    if as_json:
        print_json(rows)
        return
    table = Table("parameter", "type", "small", "full scale", "meaning")
    for row in rows:
        table.add_row(*(escape(str(row[key])) for key in ("name", "type", "default", "full", "help")))
    out.print(table)


if __name__ == "__main__":
    main()
