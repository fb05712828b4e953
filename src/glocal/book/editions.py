"""Editions of the book: the teacher's one has everything, the student's leaves the solutions out."""

import copy
import re

from nbformat import NotebookNode

EDITIONS = ("teacher", "student")
FENCE = re.compile(r"^(?P<fence>`{3,}|:{3,})\{(?P<name>solution|solution-start|solution-end)\}")


def without_solutions(notebook: NotebookNode) -> NotebookNode:
    """A copy of a notebook without the solutions of its exercises, code cells between the gates included.

    Raises:
        ValueError: if a gated solution is opened but never closed.
    """
    result = copy.deepcopy(notebook)
    kept, is_inside = [], False
    for cell in result.cells:
        if cell.cell_type != "markdown":
            if not is_inside:
                kept.append(cell)
            continue
        cell.source, is_inside = _strip(cell.source, is_inside)
        if cell.source.strip():
            kept.append(cell)
    if is_inside:
        raise ValueError("a {solution-start} has no {solution-end}: close it, or its text would vanish with it")
    result.cells = kept
    return result


def markdown_without_solutions(text: str) -> str:
    """The same for a page of Markdown."""
    stripped, is_inside = _strip(text, False)
    if is_inside:
        raise ValueError("a {solution-start} has no {solution-end}: close it, or its text would vanish with it")
    return stripped


def _strip(text: str, is_inside: bool) -> tuple[str, bool]:
    """Drop solutions from `text`; `is_inside` says whether it starts (and ends) between two gates."""
    kept: list[str] = []
    closing = ""  # the fence that ends the directive being dropped
    for line in text.split("\n"):
        if closing:
            if line.strip() == closing:
                closing = ""
            continue
        match = FENCE.match(line)
        if match:
            closing = match["fence"]
            if match["name"] != "solution":
                is_inside = match["name"] == "solution-start"
            continue
        if not is_inside:
            kept.append(line)
    return "\n".join(kept).strip("\n") + "\n", is_inside
