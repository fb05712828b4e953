"""Building the book: stage sources, stored outputs and generated pages, then let Jupyter Book render them.

Run as `python -m glocal.book.site [--edition student] [--strict]`.
"""

import argparse
import base64
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat

from glocal.book import pages
from glocal.book.catalogue import PARTS, CatalogueError, Chapter, chapters, project_root
from glocal.book.editions import EDITIONS, markdown_without_solutions, without_solutions
from glocal.book.notebooks import figure_png, read_executed
from glocal.book.scoreboard import scoreboard

API_PAGES = {
    "book": ("Book, statistics and seeds", (".", "book")),
    "data": ("Data", ("data",)),
    "papers": ("Papers and networks", (*PARTS, "nn")),
    "run": ("Running chapters", ("run",)),
}


def stage(root: Path, edition: str = "teacher") -> Path:
    """Collect everything that an edition consists of in `_build/<edition>/source`.

    Files that did not change keep their time stamps, so that Sphinx renders only what is new.

    Args:
        root: the project's folder.
        edition: `"teacher"` or `"student"` (without solutions).

    Returns:
        The folder that Jupyter Book can build.

    Raises:
        ValueError: for an unknown edition.
        CatalogueError: if a chapter has no stored outputs.
    """
    if edition not in EDITIONS:
        raise ValueError(f"edition must be one of {', '.join(EDITIONS)}, got {edition!r}")
    target = root / "_build" / edition / "source"
    with tempfile.TemporaryDirectory(prefix="glocal-") as folder:
        fresh = Path(folder)
        _collect(root, fresh, edition)
        _synchronise(fresh, target)
    return target


def build(root: Path, edition: str = "teacher", *, strict: bool = False) -> Path:
    """Render an edition with Jupyter Book.

    Args:
        root: the project's folder.
        edition: `"teacher"` or `"student"`.
        strict: warnings and unresolved references are errors.

    Returns:
        The first page of the rendered book.

    Raises:
        subprocess.CalledProcessError: if Jupyter Book fails.
    """
    source = stage(root, edition)
    output = root / "_build" / edition
    program = "from jupyter_book.cli.main import main; main()"  # the package has no __main__
    command = [sys.executable, "-c", program, "build", str(source), "--path-output", str(output), "--quiet"]
    if strict:
        command += ["-W", "-n", "--keep-going"]
    # autodoc imports the package; one thread each is enough for that
    subprocess.run(command, check=True, cwd=source, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return output / "_build" / "html" / "index.html"


def _collect(root: Path, target: Path, edition: str) -> None:
    """Write all pages of an edition into the empty folder `target`."""
    for name in ("_config.yml", "_toc.yml"):
        shutil.copyfile(root / name, target / name)
    shutil.copytree(root / "book" / "_static", target / "_static")
    shutil.copytree(root / "book" / "_static", target / "book" / "_static")
    written = chapters(root)
    thumbnails = {chapter.slug: _thumbnail(chapter, target) for chapter in written}
    _pages(root, target, edition, written, thumbnails)
    for chapter in written:
        _chapter(chapter, target, edition)
    (target / "book" / "papers.bib").write_text(pages.bibliography_entries(written), encoding="utf-8")
    shutil.copyfile(root / "book" / "references.bib", target / "book" / "references.bib")
    for name, (title, folders) in API_PAGES.items():
        text = pages.api_page(title, pages.modules_below(root / "src" / "glocal", folders))
        _write(target / "book" / "api" / f"{name}.md", text)
    _write(target / "book" / "api" / "cli.md", pages.command_line_page())


def _pages(root: Path, target: Path, edition: str, written: list[Chapter], thumbnails: dict[str, str]) -> None:
    """The pages outside of chapters: prose from `book`, with generated parts where they belong."""
    generated = {
        "GALLERY": pages.gallery_cards(written, thumbnails),
        "SCOREBOARD": pages.scoreboard_html(scoreboard(root)),
    }
    for path in sorted([*(root / "book").glob("*.md"), *(root / "book" / "parts").glob("*.md")]):
        executed = path.with_suffix(".ipynb")
        place = target / path.relative_to(root)
        if executed.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(executed, place.with_suffix(".ipynb"))
            continue
        text = path.read_text(encoding="utf-8")
        for name, block in generated.items():
            text = text.replace(f"<!-- {name} -->", block)
        if path.parent.name == "parts":
            own = [chapter for chapter in written if chapter.part == path.stem]
            text = text.replace("<!-- CHAPTERS -->", pages.gallery_cards(own, thumbnails))
            text = text.replace("<!-- SHARED -->", pages.shared_tables(own))
            text += pages.planned_list(path.stem, {chapter.slug for chapter in own})
        if edition == "student":
            text = markdown_without_solutions(text)
        _write(place, text)


def _chapter(chapter: Chapter, target: Path, edition: str) -> None:
    """A chapter's executed notebook with its header line, chips, other seeds and recorded runs."""
    notebook = read_executed(chapter.notebook)
    if edition == "student":
        notebook = without_solutions(notebook)
    header = pages.chapter_header(chapter, dict(notebook.metadata))
    inserted = {
        "## At full scale": pages.replication_section(chapter),
        "## Where we differ": pages.recorded_section(chapter),
    }
    is_headed = False
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        if not is_headed:
            cell.source, is_headed = _below_summary(cell.source, header)
        for heading, block in inserted.items():
            cell.source = _above_heading(cell.source, heading, block)
    place = target / "book" / "chapters" / chapter.part / f"{chapter.slug}.ipynb"
    _write(place, nbformat.writes(notebook) + "\n")


def _above_heading(text: str, heading: str, block: str) -> str:
    """Insert `block`, unless it is empty, above the line `heading` if `text` has it."""
    lines = text.split("\n")
    if not block or heading not in lines:
        return text
    position = lines.index(heading)
    return "\n".join([*lines[:position], block, "", *lines[position:]])


def _below_summary(text: str, header: str) -> tuple[str, bool]:
    """Insert `header` below the first line in *...* after the title; tells whether it was there."""
    lines = text.split("\n")
    has_title = False
    for position, line in enumerate(lines):
        has_title = has_title or line.startswith("# ")
        if has_title and line.startswith("*") and line.rstrip().endswith("*"):
            return "\n".join([*lines[: position + 1], "", header, "", *lines[position + 1 :]]), True
    return text, False


def _thumbnail(chapter: Chapter, target: Path) -> str:
    """Write the key figure of a chapter as a picture; returns its path from the top of the book."""
    if not chapter.notebook.is_file():
        raise CatalogueError(f"{chapter.slug} has no stored outputs: run `glocal execute {chapter.slug}`")
    encoded = figure_png(read_executed(chapter.notebook), chapter.header["key_figure"])
    if encoded is None:
        raise CatalogueError(
            f"{chapter.slug} has no figure '{chapter.header['key_figure']}' (key_figure in its header)"
        )
    place = f"book/thumbnails/{chapter.slug}.png"
    (target / place).parent.mkdir(parents=True, exist_ok=True)
    (target / place).write_bytes(base64.b64decode(encoded))
    return place


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _synchronise(source: Path, target: Path) -> None:
    """Make `target` equal to `source`, touching only files that differ."""
    wanted = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    if target.is_dir():
        for path in [path for path in target.rglob("*") if path.is_file()]:
            if path.relative_to(target) not in wanted:
                path.unlink()
    for name in sorted(wanted):
        old = target / name
        if not old.is_file() or not filecmp.cmp(source / name, old, shallow=False):
            old.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, old)


def main() -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(description="Build the book.")
    parser.add_argument("--edition", choices=EDITIONS, default="teacher", help="student leaves the solutions out")
    parser.add_argument("--strict", action="store_true", help="warnings are errors")
    options = parser.parse_args()
    try:
        page = build(project_root(), options.edition, strict=options.strict)
    except CatalogueError as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: Jupyter Book ended with exit code {error.returncode}; its messages are above")
    print(f"\nThe book ({options.edition} edition) is ready: open {page.as_uri()}")


if __name__ == "__main__":
    main()
