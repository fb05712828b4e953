"""Every chapter, whatever its paper: files in one-to-one correspondence, imports in one direction."""

import ast
from pathlib import Path

import pytest

from glocal.book.catalogue import PARTS, chapters, project_root
from glocal.book.notebooks import stored_verdict
from glocal.run.check import chapter_problems, correspondence_problems

ROOT = project_root()
CHAPTERS = chapters(ROOT)
# what a module of the package may import from the package, by its own folder
BELOW = {
    "nn": {"nn", "stats", "seeding", "budget"},
    "data": {"data", "seeding", "budget"},
    "book": {"book", "stats", "seeding", "budget"},
    "run": {"run", "book", "data"},
    **{part: {part, "nn", "data", "stats", "seeding", "budget"} for part in PARTS},
}


def test_files_toc_and_chapters_correspond():
    assert CHAPTERS
    assert correspondence_problems(ROOT, CHAPTERS) == []


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.slug)
def test_chapter_is_complete_and_fresh(chapter):
    assert chapter_problems(chapter) == []


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.slug)
def test_verdict_has_no_missing_claim(chapter):
    ids = [claim["id"] for claim in stored_verdict(chapter)["claims"]]
    numbers = sorted({int(id_.strip("C").rstrip("abcdefghij")) for id_ in ids})
    assert numbers == list(range(1, numbers[-1] + 1))


def imports(path: Path) -> set[str]:
    """First names below `glocal` that a file imports, and names of other packages."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {
                f"{node.module}.{alias.name}" if node.module == "glocal" else str(node.module) for alias in node.names
            }
    return found


@pytest.mark.parametrize(
    "path", sorted((ROOT / "src" / "glocal").glob("*/*.py")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_imports_go_one_way(path):
    folder = path.parent.name
    names = imports(path)
    inner = {name.split(".")[1] for name in names if name.startswith("glocal.")}
    allowed = BELOW[folder] | ({"cli"} if path.name == "pages.py" else set())
    assert inner <= allowed, f"{folder} must not import {inner - allowed}"
    if folder != "book" and folder != "data":
        assert not any(name.split(".")[0] == "matplotlib" for name in names)
    assert not any(name.split(".")[0] == "__future__" for name in names)
