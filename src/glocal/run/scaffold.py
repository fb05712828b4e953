"""`glocal new`: the files of a new chapter, which fail the checks until they are filled in."""

from importlib import resources
from pathlib import Path
from string import Template

import yaml

from glocal.book.catalogue import PARTS, CatalogueError, papers, part_titles
from glocal.run.files import write_text


def scaffold(part: str, slug: str, root: Path) -> list[Path]:
    """Create module, test, notebook source and full-scale file of a chapter and enter it in `_toc.yml`.

    Args:
        part: part of the book, e.g. `"graphs"`.
        slug: a paper of that part in the list of papers.
        root: the project's folder.

    Returns:
        The files created or changed. The executed notebook follows with `glocal execute`.

    Raises:
        CatalogueError: for an unknown part, a paper that is not on the list, or files that exist already.
    """
    if part not in PARTS:
        raise CatalogueError(f"there is no part '{part}'. Parts: {', '.join(PARTS)}")
    by_slug = {paper.slug: paper for paper in papers()}
    paper = by_slug.get(slug)
    if paper is None or paper.part != part:
        planned = ", ".join(p.slug for p in papers() if p.part == part)
        where = f"; it belongs to '{paper.part}'" if paper else ""
        raise CatalogueError(
            f"'{slug}' is no paper of the part '{part}'{where}. Papers of this part: {planned}. "
            "For a paper that is not on the list, add it to src/glocal/book/papers.yaml first"
        )
    values = {
        "slug": slug,
        "part": part,
        "title": paper.title,
        "arxiv": paper.arxiv,
        "year": f"20{paper.arxiv[:2]}",
        "label": slug.replace("_", "-"),
        "code": f"\n  code: {paper.code}" if paper.code else "",
    }
    files = {
        root / "src" / "glocal" / part / f"{slug}.py": "module.py.txt",
        root / "tests" / part / f"test_{slug}.py": "test.py.txt",
        root / "notebooks" / part / f"{slug}.md": "notebook.md.txt",
        root / "notebooks" / part / f"{slug}.full.yaml": "full.yaml.txt",
    }
    existing = [str(path.relative_to(root)) for path in files if path.exists()]
    if existing:
        raise CatalogueError(f"these files exist already and were left alone: {', '.join(existing)}")
    templates = resources.files("glocal.run") / "templates"
    created = []
    for path, name in files.items():
        template = Template(templates.joinpath(name).read_text(encoding="utf-8"))
        write_text(path, template.substitute(values))
        created.append(path)
    return created + _prepare_part(part, root) + [_enter_in_toc(part, slug, root)]


def _prepare_part(part: str, root: Path) -> list[Path]:
    """The package and the page of a part that has no chapter yet."""
    title = part_titles()[part]
    texts = {
        root / "src" / "glocal" / part / "__init__.py": f'"""{title}."""\n',
        root / "book" / "parts" / f"{part}.md": f"(part-{part})=\n# {title}\n\nTODO what holds this part together.\n",
    }
    missing = [path for path in texts if not path.exists()]
    for path in missing:
        write_text(path, texts[path])
    return missing


def _enter_in_toc(part: str, slug: str, root: Path) -> Path:
    """Add the chapter below its part's page in `_toc.yml`, keeping the order of the list of papers."""
    path = root / "_toc.yml"
    toc = yaml.safe_load(path.read_text(encoding="utf-8"))
    group = next(group for group in toc["parts"] if group["caption"] == "Papers")
    pages = group["chapters"]
    page = next((p for p in pages if p["file"] == f"book/parts/{part}"), None)
    if page is None:
        page = {"file": f"book/parts/{part}", "sections": []}
        pages.append(page)
        pages.sort(key=lambda p: PARTS.index(p["file"].rsplit("/", 1)[1]))
    order = [paper.slug for paper in papers()]
    page["sections"].append({"file": f"book/chapters/{part}/{slug}"})
    page["sections"].sort(key=lambda s: order.index(s["file"].rsplit("/", 1)[1]))
    write_text(path, yaml.safe_dump(toc, sort_keys=False, allow_unicode=True))
    return path
