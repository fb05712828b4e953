"""Checks common to all chapters: files belong together, outputs are fresh, headers and budgets are kept."""

import re
from pathlib import Path
from typing import Any

import yaml

from glocal.book.catalogue import CatalogueError, Chapter, chapters, code_pages, papers
from glocal.book.notebooks import (
    code_hash,
    figure_png,
    is_stale,
    read_executed,
    read_source,
    seed_dependent,
    stored_verdict,
    summary_of,
    verdict_of,
)
from glocal.book.replication import recorded_replications, statuses_in_words
from glocal.run.parameters import ParameterError, full_scale_values, parameters_of
from glocal.run.speed import slowness

CPU_BUDGET = 45.0  # seconds on a standard core
# What `reference_work` takes on a standard core, of the kind on which the first chapters were executed: four of them
# (pot, lebed, gacil, llp_bp) took 1.75 times as long on a core that needs 0.86 s for it.
STANDARD_SECONDS = 0.49
MEMORY_BUDGET_GB = 4.0
SECTIONS = (
    "What the paper claims",
    "The idea",
    "Parameters",
    "The method",
    "Experiments",
    "Verdict",
    "At full scale",
    "Where we differ",
    "Exercises",
)
TODO = re.compile(r"\bTODO\b")


def problems(root: Path) -> list[str]:
    """All problems of the whole book, each as one line that says what to do. Empty if there are none."""
    try:
        found = chapters(root)
    except CatalogueError as error:
        return [str(error)]
    listed = correspondence_problems(root, found)
    for chapter in found:
        listed += [f"{chapter.slug}: {problem}" for problem in chapter_problems(chapter)]
    for page in code_pages(root):
        if is_stale(page):
            listed.append(
                f"{page.slug}: its outputs are older than its source or code: run `glocal execute {page.slug}`"
            )
    return listed


def correspondence_problems(root: Path, found: list[Chapter]) -> list[str]:
    """Chapters whose files are incomplete, files without a chapter, and a table of contents that disagrees."""
    listed = []
    known = {paper.slug: paper.part for paper in papers()}
    for chapter in found:
        if known.get(chapter.slug) != chapter.part:
            listed.append(f"{chapter.slug}: not a paper of the part '{chapter.part}' in papers.yaml")
        for kind, path in _files(chapter).items():
            if not path.is_file():
                listed.append(f"{chapter.slug}: its {kind} {path.relative_to(root)} is missing")
    slugs = {(chapter.part, chapter.slug) for chapter in found}
    for pattern, suffix in (("notebooks/*/*.full.yaml", ".full.yaml"), ("book/chapters/*/*.ipynb", ".ipynb")):
        for path in sorted(root.glob(pattern)):
            if (path.parent.name, path.name.removesuffix(suffix)) not in slugs:
                listed.append(f"{path.relative_to(root)} belongs to no chapter: remove it or write its source")
    entries = toc_chapters(root)
    expected = {f"book/chapters/{part}/{slug}" for part, slug in slugs}
    listed += [f"_toc.yml lacks {entry}" for entry in sorted(expected - entries)]
    listed += [f"_toc.yml lists {entry}, which is no chapter" for entry in sorted(entries - expected)]
    return listed


def toc_chapters(root: Path) -> set[str]:
    """Entries of `_toc.yml` that are chapters."""

    def files(node: Any) -> list[str]:
        if isinstance(node, dict):
            return [v for k, v in node.items() if k == "file"] + [f for v in node.values() for f in files(v)]
        return [f for item in node for f in files(item)] if isinstance(node, list) else []

    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    return {entry for entry in files(toc) if entry.startswith("book/chapters/")}


def chapter_problems(chapter: Chapter) -> list[str]:
    """What is wrong with one chapter's source, parameters and stored outputs."""
    if not chapter.source.is_file():
        return ["its source is missing"]
    listed = [*_source_problems(chapter), *_parameter_problems(chapter)]
    if not chapter.notebook.is_file():
        return [*listed, f"no stored outputs: run `glocal execute {chapter.slug}`"]
    if is_stale(chapter):
        listed.append(f"its outputs are older than its source or code: run `glocal execute {chapter.slug}`")
    return [*listed, *_output_problems(chapter), *_replication_problems(chapter)]


def _replication_problems(chapter: Chapter) -> list[str]:
    """Recorded seeds of other code, and claims whose status depends on the seed without being inconclusive."""
    try:
        runs = recorded_replications(chapter.slug, chapter.root)
    except ValueError as error:
        return [str(error)]
    if not runs:
        return []
    code = code_hash(chapter)
    old = [str(run["seed"]) for run in runs if run["code_hash"] != code]
    if old:
        return [
            f"its code changed since it was replicated with seed {', '.join(old)}: "
            f"run `glocal run {chapter.slug} -p seed=...` with each of them and `glocal record` the runs"
        ]
    verdict = stored_verdict(chapter) or {"claims": []}
    differing = seed_dependent(verdict, runs)
    return [
        f"claim {claim['id']} is stored as '{claim['status']}', but its status depends on the seed "
        f"({statuses_in_words(differing[claim['id']])}): "
        "settle it by more runs, or pass the verdict through `replicated`"
        for claim in verdict["claims"]
        if claim["id"] in differing and claim["status"] != "inconclusive"
    ]


def _files(chapter: Chapter) -> dict[str, Path]:
    return {
        "module": chapter.module,
        "test": chapter.test,
        "full-scale file": chapter.full_parameters,
        "executed notebook": chapter.notebook,
    }


def _source_problems(chapter: Chapter) -> list[str]:
    listed = []
    for path in (chapter.source, chapter.module, chapter.test, chapter.full_parameters):
        if path.is_file() and TODO.search(path.read_text(encoding="utf-8")):
            listed.append(f"{path.name} still has a TODO to fill in")
    notebook = read_source(chapter.source)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    heading, summary = summary_of(notebook)
    if not heading or not summary:
        listed.append("needs a title (# ...) with a one-sentence summary in *...* below it")
    sections = [line[3:].strip() for line in text.splitlines() if line.startswith("## ")]
    if [s for s in sections if s in SECTIONS] != list(SECTIONS):
        listed.append(f"needs the sections {', '.join(SECTIONS)} in this order, got {', '.join(sections)}")
    exercises = re.findall(r"\{exercise\}[^\n]*\n:label: (\S+)", text)
    solutions = re.findall(r"\{solution(?:-start)?\} (\S+)", text)
    if len(exercises) != 3 or sorted(exercises) != sorted(solutions):
        listed.append(
            f"needs three exercises with a solution each, got {len(exercises)} exercises and {len(solutions)} solutions"
        )
    for cell in notebook.cells:
        meta = cell.metadata.get("mystnb", {})
        if "figure" in meta and not (
            meta["figure"].get("caption") and meta["figure"].get("name") and meta.get("image", {}).get("alt")
        ):
            listed.append(f"figure '{meta['figure'].get('name', '?')}' needs a name, a caption and an alt text")
    return listed


def _parameter_problems(chapter: Chapter) -> list[str]:
    try:
        parameters_of(chapter)
        full_scale_values(chapter)
    except ParameterError as error:
        return [str(error)]
    return []


def _output_problems(chapter: Chapter) -> list[str]:
    notebook = read_executed(chapter.notebook)
    verdict = verdict_of(notebook)
    if verdict is None:
        return ["its executed notebook has no verdict: end the chapter with judge(...)"]
    listed = []
    if verdict["slug"] != chapter.slug or verdict["scale"] != "small":
        listed.append(f"its stored verdict is of {verdict['slug']} at scale {verdict['scale']}")
    for claim in verdict["claims"]:
        if claim["status"] in ("fails", "inconclusive") and not claim["note"]:
            listed.append(f"claim {claim['id']} is '{claim['status']}' without an explanation (notes=...)")
    stored = notebook.metadata.get("glocal", {})
    slower = slowness(stored.get("reference_seconds", STANDARD_SECONDS), STANDARD_SECONDS)
    if stored.get("cpu_seconds", 0.0) > CPU_BUDGET * slower:
        listed.append(
            f"takes {stored['cpu_seconds']} s of CPU time, more than {CPU_BUDGET:g} s"
            + (f" times {slower:.2f}, for a core that is slower than the standard one" if slower > 1 else "")
        )
    if stored.get("peak_memory_gb", 0.0) > MEMORY_BUDGET_GB:
        listed.append(f"takes {stored['peak_memory_gb']} GB of memory, more than {MEMORY_BUDGET_GB:g} GB")
    if figure_png(notebook, chapter.header["key_figure"]) is None:
        listed.append(f"its key figure '{chapter.header['key_figure']}' is not among its outputs")
    checked = [c for c in notebook.cells if "nbval-check-output" in c.metadata.get("tags", [])]
    if len(checked) != 1:
        listed.append("needs exactly one cell tagged nbval-check-output (verdict.print_statuses())")
    for cell in notebook.cells:
        figure = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
        if figure and len(cell.get("outputs", [])) != 1:
            listed.append(f"the cell of figure '{figure}' must have one output: end its last line with a semicolon")
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                listed.append(f"prints to stderr: {output['text'].strip().splitlines()[-1][:120]}")
    return listed
