"""Pages and parts of pages that derive from headers, verdicts and recorded runs."""

import html
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from glocal.book.catalogue import Chapter, papers, part_titles
from glocal.book.notebooks import outputs_of, read_executed, seed_dependent, stored_verdict, summary_of
from glocal.book.replication import recorded_replications
from glocal.book.scoreboard import STATUSES
from glocal.book.shared import MIME as SHARED_MIME
from glocal.book.shared import shared_table
from glocal.book.verdict import status_chip

DIFFICULTY = {1: "first course", 2: "second course", 3: "research"}
ARXIV = "https://arxiv.org/abs/"
GITHUB = "https://github.com/"


def chapter_header(chapter: Chapter, notebook_metadata: dict[str, Any]) -> str:
    """The metadata line and the status chips below a chapter's title, as Markdown with HTML."""
    header = chapter.header
    cpu = notebook_metadata.get("glocal", {}).get("cpu_seconds")
    facts = [
        html.escape(", ".join(header["authors"])),
        f"{html.escape(header['venue'])} {header['year']}",
        f'<a href="{ARXIV}{header["arxiv"]}">arXiv:{header["arxiv"]}</a>',
    ]
    if "code" in header:
        facts.append(f'<a href="{GITHUB}{header["code"]}">official code</a>')
    reading = [
        f"Part: {html.escape(part_titles()[chapter.part])}",
        f"{cpu / 60:.1f} CPU minutes" if cpu else "",
        f"difficulty: {DIFFICULTY[header['difficulty']]}",
        f"you should know: {html.escape(', '.join(header['prerequisites']))}",
    ]
    separator = '<span class="glocal-sep"></span>'
    return "\n".join(
        [
            f'<div class="glocal-meta">{separator.join(facts)}<br>{separator.join(filter(None, reading))}</div>',
            chips(stored_verdict(chapter), link="#verdict"),
        ]
    )


def chips(verdict: dict[str, Any] | None, *, link: str) -> str:
    """One chip per claim of a verdict, each a link to `link`."""
    if verdict is None:
        return ""
    spans = []
    for claim in verdict["claims"]:
        chip = status_chip(claim["status"], claim["id"])
        title = html.escape(claim["statement"], quote=True)
        spans.append(f'<a href="{link}" title="{title}">{chip}</a>')
    return f'<div class="glocal-chips">{"".join(spans)}</div>'


def status_counts(verdict: dict[str, Any] | None) -> str:
    """One chip per status that occurs in a verdict, with the number of claims that have it."""
    if verdict is None:
        return ""
    counts = Counter(claim["status"] for claim in verdict["claims"])
    spans = [status_chip(status, str(counts[status])) for status in STATUSES if counts[status]]
    return f'<div class="glocal-chips">{"".join(spans)}</div>'


def recorded_section(chapter: Chapter) -> str:
    """The recorded full-scale runs of a chapter as HTML; empty if there are none."""
    try:
        runs = json.loads(chapter.recorded.read_text(encoding="utf-8"))["runs"]
    except (OSError, ValueError, KeyError):
        return ""
    blocks = []
    for run in runs:
        hardware = run["hardware"]
        where = ", ".join(hardware["gpus"]) or f"{hardware['processor']} (CPU)"
        parameters = ", ".join(f"{name}={value}" for name, value in run["parameters"].items())
        rows = "".join(
            f'<tr><td><span class="glocal-id">{claim["id"]}</span> {html.escape(claim["statement"])}</td>'
            f"<td>{html.escape(claim['paper'])}</td><td>{html.escape(interval_text(claim['ours']))}</td>"
            f"<td>{status_chip(claim['status'])}</td></tr>"
            for claim in run["verdict"]["claims"]
        )
        blocks.append(
            f"<p>Recorded on {run['start'][:10]}, {html.escape(where)}, {run['wall_seconds'] / 3600:.2f} h, "
            f"{run['peak_memory_gb']} GB: <code>{html.escape(parameters)}</code></p>"
            '<div class="glocal-scroll"><table class="glocal-verdict"><thead><tr><th>claim</th><th>the paper says</th>'
            f"<th>at full scale</th><th>status</th></tr></thead><tbody>{rows}</tbody></table></div>"
        )
    return "\n".join(blocks)


def replication_section(chapter: Chapter) -> str:
    """What the chapter found with other seeds, as HTML; empty if that is not recorded."""
    runs, verdict = recorded_replications(chapter.slug, chapter.root), stored_verdict(chapter)
    if not runs or verdict is None:
        return ""
    differing, n_claims = seed_dependent(verdict, runs), len(verdict["claims"])
    seeds = " and ".join(str(run["seed"]) for run in runs)
    text = f"Recorded runs of the whole chapter with seed {seeds} give "
    if not differing:
        return f'<p class="glocal-replication">{text}the same status for all claims.</p>'
    text += f"the same status for {n_claims - len(differing)} of {n_claims} claims. The others are inconclusive:"
    return f'<p class="glocal-replication">{text}</p>\n{_table_by_seed(differing, runs)}'


def _table_by_seed(names: Iterable[str], runs: list[dict[str, Any]]) -> str:
    """Statuses and measurements of some claims, one column per recorded seed."""
    rows = []
    for name in names:
        claims = [run["claims"].get(name) for run in runs]
        cells = [f"{status_chip(c['status'])} {html.escape(interval_text(c['ours']))}" if c else "" for c in claims]
        rows.append(f'<tr><td><span class="glocal-id">{name}</span></td><td>{"</td><td>".join(cells)}</td></tr>')
    head = "".join(f"<th>seed {run['seed']}, by itself</th>" for run in runs)
    body = f"<thead><tr><th>claim</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="glocal-scroll"><table class="glocal-verdict">{body}</table></div>'


def interval_text(ours: dict[str, Any] | None) -> str:
    """A measured interval of a verdict in words."""
    if ours is None:
        return "not tested"
    unit = f" {ours['unit']}" if ours["unit"] else ""
    if ours["low"] is None:
        return f"{ours['value']:.3g}{unit}"
    return f"{ours['value']:.3g}{unit} [{ours['low']:.3g}, {ours['high']:.3g}]"


def gallery_cards(chapters: Iterable[Chapter], thumbnails: dict[str, str]) -> str:
    """A grid of cards, one per chapter, with its key figure, summary and statuses.

    Args:
        chapters: the chapters to show.
        thumbnails: for each slug the picture's path from the top of the book.
    """
    cards = []
    for chapter in chapters:
        heading, summary = summary_of(read_executed(chapter.notebook))
        cards.append(
            f"""::::{{grid-item-card}} {heading}
:class-card: glocal-card
:img-top: /{thumbnails[chapter.slug]}
:img-alt: Key figure of the chapter {heading}
:link: /book/chapters/{chapter.part}/{chapter.slug}
:link-type: doc

{summary}

:::{{card-footer}}
{status_counts(stored_verdict(chapter))}
:::
::::"""
        )
    return ":::::{grid} 1 2 2 3\n:gutter: 3\n\n" + "\n\n".join(cards) + "\n:::::\n"


def shared_tables(chapters: Iterable[Chapter]) -> str:
    """For every task that chapters share, one table with the methods of all of them, best first; HTML."""
    tasks: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for chapter in chapters:
        notebook = read_executed(chapter.notebook)
        link = f'<a href="../chapters/{chapter.part}/{chapter.slug}.html">{html.escape(summary_of(notebook)[0])}</a>'
        for shared in outputs_of(notebook, SHARED_MIME):
            tasks.setdefault(shared["task"], []).append((link, shared))
    return "\n\n".join(f'<div class="glocal-scroll">{shared_table(rows)}</div>' for rows in tasks.values())


def planned_list(part: str, written: set[str]) -> str:
    """The papers of a part that have no chapter yet, as one Markdown paragraph; empty if there are none."""
    planned = [paper for paper in papers() if paper.part == part and paper.slug not in written]
    if not planned:
        return ""
    items = "\n".join(f"- {paper.title} ([arXiv:{paper.arxiv}]({ARXIV}{paper.arxiv}))" for paper in planned)
    return f"\n```{{rubric}} Planned\n```\n\n{items}\n"  # no heading: it would take a number of the chapters


def scoreboard_html(board: dict[str, Any]) -> str:
    """Totals, filters and the table of all papers and claims."""
    totals = board["totals"]
    tiles = "".join(f"<div><strong>{n}</strong><span>{html.escape(name)}</span></div>" for name, n in totals.items())
    parts = "".join(f'<option value="{part}">{html.escape(title)}</option>' for part, title in board["parts"].items())
    states = "".join(f'<option value="{status}">{status}</option>' for status in (*STATUSES, "planned"))
    filters = (
        '<div class="glocal-filters" hidden>'
        f'<label>Part<select id="glocal-part"><option value="">all</option>{parts}</select></label>'
        f'<label>Status<select id="glocal-status"><option value="">all</option>{states}</select></label>'
        '<label>Words<input id="glocal-words" type="search" placeholder="title or claim"></label>'
        '<span id="glocal-count" class="glocal-meta" role="status"></span></div>'
    )
    head = "<tr><th>claim</th><th>the paper says</th><th>ours, small scale</th><th>status</th><th>full scale</th></tr>"
    bodies = "".join(_board_rows(paper) for paper in board["papers"])
    table = f'<table class="glocal-board"><thead>{head}</thead>{bodies}</table>'
    return f'<div class="glocal-totals">{tiles}</div>\n{filters}\n<div class="glocal-board-scroll">{table}</div>'


def _board_rows(paper: dict[str, Any]) -> str:
    title = html.escape(paper["title"])
    if paper["state"] == "written":
        title = f'<a href="chapters/{paper["part"]}/{paper["slug"]}.html">{title}</a>'
    rows = [
        f'<tr class="glocal-paper"><td colspan="5">{title} <span class="glocal-state">'
        f'<a href="{ARXIV}{paper["arxiv"]}">arXiv:{paper["arxiv"]}</a> · {paper["state"]}</span></td></tr>'
    ]
    for claim in paper["claims"]:
        full = claim["full"]
        at_scale = f"{html.escape(interval_text(full['ours']))} {status_chip(full['status'])}" if full else "–"
        rows.append(
            f'<tr data-status="{claim["status"]}"><td><span class="glocal-id">{claim["id"]}</span> '
            f"{html.escape(claim['statement'])}</td><td>{html.escape(claim['paper'])}</td>"
            f"<td>{html.escape(interval_text(claim['ours']))}</td><td>{status_chip(claim['status'])}</td>"
            f"<td>{at_scale}</td></tr>"
        )
    return f'<tbody data-part="{paper["part"]}" data-state="{paper["state"]}">{"".join(rows)}</tbody>'


def bibliography_entries(chapters: Iterable[Chapter]) -> str:
    """BibTeX entries of the papers that have a chapter, from the chapters' headers."""
    entries = []
    for chapter in chapters:
        header = chapter.header
        is_preprint = header["venue"].lower() == "arxiv"
        fields = {
            "title": f"{{{header['title']}}}",
            "author": " and ".join(header["authors"]),
            "year": str(header["year"]),
            "note": f"arXiv:{header['arxiv']}",
        } | ({} if is_preprint else {"booktitle": f"{{{header['venue']}}}"})
        body = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
        entries.append(f"@{'misc' if is_preprint else 'inproceedings'}{{{header['cite']},\n{body}\n}}")
    return "\n\n".join(entries) + "\n"


def api_page(title: str, modules: list[str]) -> str:
    """An API page: the documented members of modules."""
    blocks = [f"## {module}\n\n```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n```\n" for module in modules]
    return f"# {title}\n\n" + "\n".join(blocks)


def command_line_page() -> str:
    """Reference of the command line: every command with its arguments and options."""
    import typer

    from glocal.cli import app

    blocks = []
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        rows = []
        for parameter in command.params:
            is_option = parameter.param_type_name == "option"
            label = ", ".join(parameter.opts) if is_option else str(parameter.name).upper()
            rows.append(f"| `{label}` | {getattr(parameter, 'help', '') or ''} |")
        table = "\n".join(["| argument or option | meaning |", "|---|---|", *rows, ""]) if rows else ""
        blocks.append(f"## glocal {name}\n\n{command.help}\n\n{table}")
    return "# Command line\n\n" + "\n".join(blocks)


def modules_below(package: Path, folders: Iterable[str]) -> list[str]:
    """Dotted names of the modules in some folders of the package (`"."`: its top), sorted."""
    names = []
    for folder in folders:
        for path in sorted((package / folder).glob("*.py")):
            parts = path.relative_to(package).with_suffix("").parts
            if parts[-1] not in ("__init__", "cli"):
                names.append(".".join(("glocal", *parts)))
    return names
