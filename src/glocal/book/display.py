"""What a chapter shows besides figures: blocks of HTML and the source of the very functions that run."""

import ast
import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


class HtmlBlock:
    """A piece of HTML with a plain-text twin for terminals and screen readers."""

    def __init__(self, html: str, text: str) -> None:
        self.html = html
        self.text = text

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": self.text}

    def __repr__(self) -> str:
        return self.text


class SourceBlock:
    """Source code as a Markdown block: the book highlights it in its own light and dark colours."""

    def __init__(self, source: str, origin: str) -> None:
        self.source = source
        self.origin = origin

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        block = f"```python\n{self.source}\n```\n\n*{self.origin}*"
        return {"text/markdown": block, "text/plain": f"# {self.origin}\n{self.source}"}

    def __repr__(self) -> str:
        return f"# {self.origin}\n{self.source}"


def show_source(*objects: Callable[..., Any] | type | ModuleType, docstring: bool = True) -> SourceBlock:
    """Show the source of functions or classes of the package, exactly as it runs.

    Args:
        objects: functions, methods, classes or modules, shown in the given order.
        docstring: keep docstrings; False drops them where the text around the cell says the same.

    Returns:
        A block that displays the code with the file it comes from.

    Raises:
        ValueError: without objects.
    """
    if not objects:
        raise ValueError("show_source needs at least one function or class")
    sources, files = [], []
    for item in objects:
        target = inspect.unwrap(item) if callable(item) else item
        source = textwrap.dedent(inspect.getsource(target)).rstrip()
        sources.append(source if docstring else _without_docstrings(source))
        files.append(_package_path(Path(inspect.getsourcefile(target) or "")))
    return SourceBlock("\n\n\n".join(sources), ", ".join(dict.fromkeys(files)))


def _package_path(path: Path) -> str:
    """`glocal/graphs/ultragcn.py` for a file of the package, the bare file name for any other."""
    parts = path.parts
    return "/".join(parts[len(parts) - parts[::-1].index("glocal") - 1 :]) if "glocal" in parts else path.name


def _without_docstrings(source: str) -> str:
    """Drop the docstrings of all functions and classes in `source`, keeping comments and layout."""
    lines = source.splitlines()
    spans: list[tuple[int, int]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            first = node.body[0]
            if len(node.body) > 1:
                spans.append((first.lineno, first.end_lineno or first.lineno))
    for start, end in sorted(spans, reverse=True):
        del lines[start - 1 : end]
        while start - 1 < len(lines) and not lines[start - 1].strip():
            del lines[start - 1]
    return "\n".join(lines)
