"""Sphinx extension of the book: TeX in docstrings, MathJax without a network."""

import importlib.metadata
import re
import shutil
from pathlib import Path
from typing import Any

# in this order: literals and roles stay, `code` becomes a literal, mathematics becomes a directive or a role
TOKEN = re.compile(
    r"(?P<keep>``.+?``|:[\w:]+:`[^`]+`)"
    r"|`(?P<code>[^`\n]+)`"
    r"|\$\$(?P<display>.+?)\$\$"
    r"|(?<![\\$])\$(?!\s)(?P<inline>[^$]+?)(?<!\s)\$(?!\d)",
    re.DOTALL,
)
MATHJAX = "sphinx-mathjax-offline"
MATHJAX_FILES = re.compile(r"static/mathjax/(tex-chtml\.js|output/chtml/fonts/woff-v2/.*)$")


def docstring_markup(text: str) -> str:
    """Turn the mark-up of our docstrings into reStructuredText.

    TeX between dollar signs becomes a math role or directive. Single backticks mean code; without a role they
    would be looked up as names, so they become literals.
    """

    def replace(match: re.Match[str]) -> str:
        if match["keep"]:
            return match["keep"]
        if match["code"]:
            return f"``{match['code']}``"
        if match["display"]:
            return f"\n\n.. math:: {' '.join(match['display'].split())}\n\n"
        return f":math:`{' '.join(match['inline'].split())}`"

    return TOKEN.sub(replace, text)


def process_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Event handler of autodoc: rewrite the mark-up of a docstring in place."""
    lines[:] = docstring_markup("\n".join(lines)).split("\n")


def copy_mathjax(app: Any, error: Exception | None) -> None:
    """Event handler at the end of a build: put MathJax and its fonts beside the pages."""
    if error is not None or app.builder.format != "html":
        return
    for file in importlib.metadata.files(MATHJAX) or []:
        match = MATHJAX_FILES.search(file.as_posix())
        if match:
            target = Path(app.outdir) / "_static" / "mathjax" / match.group(1)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(file.locate()), target)


def setup(app: Any) -> dict[str, bool]:
    """Register the handlers (called by Sphinx)."""
    # before napoleon (priority 500), which would escape the backslashes of the mathematics
    app.connect("autodoc-process-docstring", process_docstring, priority=400)
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
