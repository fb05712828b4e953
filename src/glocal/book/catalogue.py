"""Which chapters exist, where their files lie, and which papers are still planned."""

import difflib
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import yaml

PARTS = (
    "theory",
    "graphs",
    "federated",
    "shift",
    "fewshot",
    "retrieval",
    "supervision",
    "generative",
    "reinforcement",
    "training",
)
REQUIRED = {
    "slug": str,
    "part": str,
    "title": str,
    "authors": list,
    "venue": str,
    "year": int,
    "cite": str,
    "arxiv": str,
    "difficulty": int,
    "prerequisites": list,
    "key_figure": str,
    "full_scale": dict,
}
OPTIONAL = {"code": str}


class CatalogueError(Exception):
    """A chapter that does not exist, or whose header is wrong; the message says what to do."""


@dataclass(frozen=True)
class Paper:
    """An entry of the list of papers: what the book covers or will cover."""

    slug: str
    part: str
    title: str
    arxiv: str
    code: str | None = None


@runtime_checkable
class Executable(Protocol):
    """Anything with a source that is executed and stored: a chapter, or a page with code."""

    @property
    def root(self) -> Path: ...

    @property
    def slug(self) -> str: ...

    @property
    def source(self) -> Path: ...

    @property
    def notebook(self) -> Path: ...


@dataclass(frozen=True)
class Page:
    """A page of the book outside of the chapters that has code, e.g. the data page."""

    root: Path
    slug: str

    @property
    def source(self) -> Path:
        """The source that people edit: jupytext MyST Markdown."""
        return self.root / "book" / f"{self.slug}.md"

    @property
    def notebook(self) -> Path:
        """The source executed, outputs stored (generated)."""
        return self.root / "book" / f"{self.slug}.ipynb"


@dataclass(frozen=True)
class Chapter:
    """A written chapter: its header and the places of its files.

    Args:
        root: the project's folder.
        slug: its name; the same for all of its files.
        part: the part of the book.
        header: the mapping under `glocal:` in the YAML header of the source.
    """

    root: Path
    slug: str
    part: str
    header: dict[str, Any] = field(hash=False, compare=False)

    @property
    def source(self) -> Path:
        """The source that people edit: jupytext MyST Markdown."""
        return self.root / "notebooks" / self.part / f"{self.slug}.md"

    @property
    def full_parameters(self) -> Path:
        """Parameters of the paper's own scale."""
        return self.root / "notebooks" / self.part / f"{self.slug}.full.yaml"

    @property
    def module(self) -> Path:
        """The method."""
        return self.root / "src" / "glocal" / self.part / f"{self.slug}.py"

    @property
    def test(self) -> Path:
        """The properties that the method is tested for."""
        return self.root / "tests" / self.part / f"test_{self.slug}.py"

    @property
    def notebook(self) -> Path:
        """The source executed at small scale, outputs stored (generated)."""
        return self.root / "book" / "chapters" / self.part / f"{self.slug}.ipynb"

    @property
    def recorded(self) -> Path:
        """The recorded full-scale runs, if any."""
        return self.root / "book" / "results" / f"{self.slug}.json"

    @property
    def title(self) -> str:
        """Title of the paper."""
        return str(self.header["title"])


def project_root(start: Path | None = None) -> Path:
    """The project's folder: the nearest parent of `start` that holds the book, or the checkout of the package.

    Raises:
        CatalogueError: if neither is a checkout of the project.
    """
    candidates = [*(start or Path.cwd()).resolve().parents, Path(__file__).resolve().parents[3]]
    for folder in [(start or Path.cwd()).resolve(), *candidates]:
        if (folder / "_toc.yml").is_file() and (folder / "notebooks").is_dir():
            return folder
    raise CatalogueError(
        f"no glocal checkout at {Path.cwd()} or above it: change into the cloned repository and run the command there"
    )


def read_header(source: Path) -> dict[str, Any]:
    """The chapter's metadata: the mapping under `glocal:` in the YAML header of a source.

    Raises:
        CatalogueError: if the header is missing, not valid YAML, or lacks a key or has it with a wrong type.
    """
    text = source.read_text(encoding="utf-8")
    if not text.startswith("---\n") or "\n---\n" not in text[4:]:
        raise CatalogueError(f"{source} must start with a YAML header between two lines of ---")
    try:
        header = yaml.safe_load(text[4 : text.index("\n---\n", 4)])
    except yaml.YAMLError as error:
        raise CatalogueError(f"the YAML header of {source} cannot be read: {error}") from error
    metadata = header.get("glocal") if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise CatalogueError(f"the header of {source} needs a mapping under 'glocal:'")
    for key, kind in REQUIRED.items():
        if key not in metadata:
            raise CatalogueError(f"the header of {source} lacks '{key}:' under 'glocal:'")
        if not isinstance(metadata[key], kind):
            raise CatalogueError(
                f"'{key}' in the header of {source} must be of type {kind.__name__}, got {metadata[key]!r}"
            )
    unknown = sorted(set(metadata) - set(REQUIRED) - set(OPTIONAL))
    if unknown:
        valid = ", ".join([*REQUIRED, *OPTIONAL])
        raise CatalogueError(f"unknown key '{unknown[0]}' in the header of {source}; valid keys: {valid}")
    if (metadata["slug"], metadata["part"]) != (source.stem, source.parent.name):
        raise CatalogueError(
            f"the header of {source} says {metadata['part']}/{metadata['slug']}, "
            f"its place says {source.parent.name}/{source.stem}: make them equal"
        )
    return metadata


def chapters(root: Path | None = None) -> list[Chapter]:
    """All written chapters, in the order of the list of papers."""
    root = root or project_root()
    order = {paper.slug: position for position, paper in enumerate(papers())}
    found = [
        Chapter(root, source.stem, source.parent.name, read_header(source))
        for source in sorted((root / "notebooks").glob("*/*.md"))
    ]
    return sorted(found, key=lambda chapter: (order.get(chapter.slug, len(order)), chapter.slug))


def code_pages(root: Path | None = None) -> list[Page]:
    """The pages outside of the chapters that have code."""
    root = root or project_root()
    found = sorted((root / "book").glob("*.md"))
    return [Page(root, path.stem) for path in found if path.read_text(encoding="utf-8").startswith("---\njupytext:")]


def chapter(slug: str, root: Path | None = None) -> Chapter:
    """The chapter named `slug`.

    Raises:
        CatalogueError: if there is none; the message lists the existing ones, nearest first.
    """
    known = {chapter.slug: chapter for chapter in chapters(root)}
    if slug in known:
        return known[slug]
    if slug in {paper.slug for paper in papers()}:
        reason = f"chapter '{slug}' is planned but not written yet"
    else:
        near = difflib.get_close_matches(slug, known, n=1)
        reason = f"there is no chapter '{slug}'" + (f"; did you mean '{near[0]}'?" if near else "")
    raise CatalogueError(f"{reason}. Chapters: {', '.join(known) or 'none yet'}")


@cache
def papers() -> tuple[Paper, ...]:
    """The sixty-six papers, part by part."""
    return tuple(
        Paper(entry["slug"], part["part"], entry["title"], entry["arxiv"], entry.get("code"))
        for part in _parts()
        for entry in part["papers"]
    )


@cache
def part_titles() -> dict[str, str]:
    """Title of each part of the book, in order."""
    return {part["part"]: part["title"] for part in _parts()}


@cache
def _parts() -> tuple[dict[str, Any], ...]:
    text = resources.files("glocal.book").joinpath("papers.yaml").read_text(encoding="utf-8")
    return tuple(yaml.safe_load(text))
