"""Sources and executed notebooks: reading them, telling whether they still belong together, finding verdicts."""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbformat import NotebookNode

from glocal.book.catalogue import Chapter, Executable
from glocal.book.replication import own_status, statuses_by_seed
from glocal.book.verdict import MIME, Status


def read_source(source: Path) -> NotebookNode:
    """A chapter's source as a notebook without outputs, with cell ids that only depend on their position."""
    notebook = jupytext.read(source)
    for position, cell in enumerate(notebook.cells):
        cell["id"] = f"{source.stem.replace('_', '-')}-{position:03d}"
    return notebook


def read_executed(path: Path) -> NotebookNode:
    """An executed notebook."""
    return nbformat.read(path, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The code cells of a notebook, from top to bottom."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def source_hash(chapter: Executable) -> str:
    """Hash of a source and of every module of the package that it imports, directly or not."""
    return _hash_with_modules(chapter, [chapter.source.read_bytes()])


def code_hash(chapter: Executable) -> str:
    """Hash of what the outputs follow from: the code cells, which of them holds the parameters, and the modules."""
    cells = code_cells(jupytext.read(chapter.source))
    parts = [f"\n{'parameters' in cell.metadata.get('tags', [])}\n{cell.source}".encode() for cell in cells]
    return _hash_with_modules(chapter, parts)


def _hash_with_modules(chapter: Executable, parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256(b"".join(parts))
    package = chapter.root / "src" / "glocal"
    for path in imported_modules(_code(chapter.source), package):
        digest.update(f"\n{path.relative_to(package).as_posix()}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def imported_modules(code: str, package: Path) -> list[Path]:
    """Files of the package that `code` imports, directly or through other modules, sorted by path."""
    found: set[Path] = set()
    queue = [code]
    while queue:
        for name in _imported_names(queue.pop()):
            for path in _files_of(name, package):
                if path not in found:
                    found.add(path)
                    queue.append(path.read_text(encoding="utf-8"))
    return sorted(found)


def _code(source: Path) -> str:
    return "\n".join(cell.source for cell in code_cells(jupytext.read(source)))


def _imported_names(code: str) -> Iterator[str]:
    """Dotted names under `glocal` that the code imports; `from a import b` yields `a` and `a.b`."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "glocal")


def _files_of(name: str, package: Path) -> Iterator[Path]:
    """The module `name` and the `__init__` files of the packages above it, as far as they exist."""
    parts = name.split(".")[1:]
    for depth in range(len(parts) + 1):
        stem = package.joinpath(*parts[:depth])
        for path in (stem / "__init__.py", stem.with_suffix(".py")):
            if path.is_file():
                yield path


def stored_hash(chapter: Executable) -> str | None:
    """Hash that the executed notebook was made from; None if there is no readable one."""
    try:
        notebook = read_executed(chapter.notebook)
    except (OSError, ValueError):
        return None
    return notebook.metadata.get("glocal", {}).get("hash")


def is_stale(chapter: Executable) -> bool:
    """Whether the chapter's source or code changed since its outputs were stored."""
    return stored_hash(chapter) != source_hash(chapter)


def outputs_of(notebook: NotebookNode, mime: str) -> Iterator[dict[str, Any]]:
    """The JSON outputs of an executed notebook with the given MIME type, from top to bottom."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if mime in output.get("data", {}):
                yield dict(output["data"][mime])


def verdict_of(notebook: NotebookNode) -> dict[str, Any] | None:
    """The verdict that an executed notebook carries; None if it has none."""
    return next(outputs_of(notebook, MIME), None)


def stored_verdict(chapter: Chapter) -> dict[str, Any] | None:
    """The verdict stored in the chapter's executed notebook; None if there is none."""
    try:
        return verdict_of(read_executed(chapter.notebook))
    except (OSError, ValueError):
        return None


def seed_dependent(verdict: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, dict[int, Status]]:
    """Claims of a verdict whose status by itself differs from a recorded one, with the recorded statuses by seed."""
    found = statuses_by_seed(runs)
    by_claim = {claim["id"]: (own_status(claim), found.get(claim["id"], {})) for claim in verdict["claims"]}
    return {name: by_seed for name, (own, by_seed) in by_claim.items() if not set(by_seed.values()) <= {own}}


def figure_png(notebook: NotebookNode, name: str) -> str | None:
    """The figure with the given name (`mystnb.figure.name`) as base64 PNG; None if it is not there."""
    for cell in notebook.cells:
        if cell.metadata.get("mystnb", {}).get("figure", {}).get("name") == name:
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    return str(output["data"]["image/png"])
    return None


def summary_of(notebook: NotebookNode) -> tuple[str, str]:
    """Heading and one-sentence summary of a chapter: its first H1 and the emphasised line below it."""
    heading = summary = ""
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        for line in cell.source.splitlines():
            text = line.strip()
            if text.startswith("# ") and not heading:
                heading = text[2:].strip()
            elif heading and text.startswith("*") and text.endswith("*") and not text.startswith("**"):
                return heading, text.strip("*")
            elif heading and text.startswith("## "):
                return heading, summary
    return heading, summary
