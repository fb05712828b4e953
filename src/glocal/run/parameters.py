"""Parameters of a chapter: read from its parameters cell, checked before any kernel starts."""

import ast
import difflib
import io
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from glocal.book.catalogue import Chapter
from glocal.book.notebooks import read_source

REQUIRED = ("seed", "n_seeds", "device", "dataset", "scale")
INJECTED = ("scale",)  # set by the runner, never by hand
SCALARS: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool}


class ParameterError(ValueError):
    """A parameter that does not exist or has the wrong type; the message lists what is valid."""


@dataclass(frozen=True)
class Parameter:
    """One line of the parameters cell: `name: type = default  # help`."""

    name: str
    type: str
    default: Any
    help: str


def parameters_of(chapter: Chapter) -> dict[str, Parameter]:
    """The parameters of a chapter with types, defaults and help, in the order of the parameters cell.

    Raises:
        ParameterError: if the chapter has no parameters cell, or a line of it has no type, no plain default
            or no comment.
    """
    cells = read_source(chapter.source).cells
    code = "\n".join(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    if not code.strip():
        raise ParameterError(f"{chapter.source} has no cell with the tag 'parameters', or it is empty")
    parameters = {}
    for name, kind, text, comment in _assignments(chapter, code):
        try:
            default = ast.literal_eval(text)
        except (SyntaxError, ValueError) as error:
            raise ParameterError(f"parameter '{name}' of {chapter.slug} needs a literal default, got {text}") from error
        if not _is_valid_type(kind):
            raise ParameterError(
                f"parameter '{name}' of {chapter.slug} needs a type int, float, str, bool or list[...] of "
                f"these, got {kind or 'none'}: write `{name}: int = {text}  # help`"
            )
        if not comment:
            raise ParameterError(f"parameter '{name}' of {chapter.slug} needs a comment that explains it")
        parameters[name] = Parameter(name, kind, _checked(chapter.slug, name, kind, default), comment)
    missing = [name for name in REQUIRED if name not in parameters]
    if missing:
        raise ParameterError(f"the parameters cell of {chapter.slug} lacks {', '.join(missing)}")
    return parameters


def _assignments(chapter: Chapter, code: str) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and comment of every line of a parameters cell."""
    comments = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(code).readline)
        if token.type == tokenize.COMMENT
    }
    for statement in ast.parse(code).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name, kind, value = statement.targets[0].id, "", statement.value
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
            name, kind, value = statement.target.id, ast.unparse(statement.annotation), statement.value
        else:
            raise ParameterError(
                f"the parameters cell of {chapter.slug} holds more than `name: type = default  # help`: "
                f"{ast.unparse(statement)}"
            )
        yield name, kind, ast.unparse(value), comments.get(statement.end_lineno or statement.lineno, "")


def full_scale_values(chapter: Chapter) -> dict[str, Any]:
    """The chapter's full-scale parameters, checked against its parameters cell.

    Raises:
        ParameterError: if the file is missing, is no flat mapping, or holds an unknown or ill-typed parameter.
    """
    path = chapter.full_parameters
    if not path.is_file():
        raise ParameterError(f"{path} is missing: it holds the full-scale parameters of {chapter.slug}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ParameterError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ParameterError(f"{path} must be a mapping of parameter names to values")
    return validate(chapter, values)


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """Turn `name=value` texts into a mapping; values are read as YAML (`[1, 2]`, `1e-3`, `true`, `text`).

    Raises:
        ParameterError: for a text without `=`, a repeated name or a value that is not valid YAML.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.strip():
            raise ParameterError(f"-p needs name=value, got '{assignment}'")
        if name.strip() in values:
            raise ParameterError(f"parameter '{name.strip()}' is given twice")
        try:
            values[name.strip()] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ParameterError(f"the value of '{name}' is not valid YAML: {text}") from error
    return values


def validate(chapter: Chapter, values: Mapping[str, Any]) -> dict[str, Any]:
    """Check `values` against the chapter's parameters cell.

    Returns:
        The values, with integers turned into floats where a float is asked for.

    Raises:
        ParameterError: for an unknown name, a name that only the runner sets, or a wrong type.
    """
    parameters = parameters_of(chapter)
    settable = {name: p for name, p in parameters.items() if name not in INJECTED}
    checked = {}
    for name, value in values.items():
        if name in INJECTED:
            raise ParameterError(f"'{name}' is set by the runner: use --full or --rehearse instead")
        if name not in settable:
            near = difflib.get_close_matches(name, settable, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else "."
            valid = "\n".join(f"  {p.name}: {p.type} = {p.default!r}  # {p.help}" for p in settable.values())
            raise ParameterError(f"chapter '{chapter.slug}' has no parameter '{name}'{hint} Valid parameters:\n{valid}")
        checked[name] = _checked(chapter.slug, name, settable[name].type, value)
    return checked


def _is_valid_type(kind: str) -> bool:
    return kind in SCALARS or (kind.startswith("list[") and kind[5:-1] in SCALARS)


def _checked(slug: str, name: str, kind: str, value: Any) -> Any:
    """`value` if it is of type `kind`; YAML reads `1e-3` as text and `1` as an integer, both are accepted as float."""
    if kind.startswith("list["):
        if not isinstance(value, list):
            raise ParameterError(f"parameter '{name}' of {slug} must be {kind}, got {value!r}")
        return [_checked(slug, name, kind[5:-1], item) for item in value]
    if kind == "float" and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    if not isinstance(value, SCALARS[kind]) or (kind == "int" and isinstance(value, bool)):
        raise ParameterError(f"parameter '{name}' of {slug} must be {kind}, got {value!r}")
    return value
