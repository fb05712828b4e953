"""The scoreboard: every paper of the list with its state and, where a chapter exists, the status of its claims."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from glocal.book.catalogue import chapters, papers, part_titles
from glocal.book.notebooks import stored_verdict

STATUSES = ("holds", "fails", "inconclusive", "full-scale")


def scoreboard(root: Path) -> dict[str, Any]:
    """Everything that the scoreboard shows, as plain data.

    Args:
        root: the project's folder.

    Returns:
        `papers` (in the order of the book; each with `slug`, `part`, `title`, `arxiv`, `state` (`"written"` or
        `"planned"`) and `claims`), and `totals` of papers by state and of claims by status. A claim shows the
        verdict at small scale and, under `full`, the newest recorded one.
    """
    written = {chapter.slug: chapter for chapter in chapters(root)}
    rows: list[dict[str, Any]] = []
    for paper in papers():
        row: dict[str, Any] = {
            "slug": paper.slug,
            "part": paper.part,
            "title": paper.title,
            "arxiv": paper.arxiv,
            "state": "planned",
            "claims": [],
        }
        chapter = written.get(paper.slug)
        if chapter is not None:
            verdict = stored_verdict(chapter)
            full = _recorded_claims(chapter.recorded)
            claims = verdict["claims"] if verdict else []
            row |= {
                "state": "written",
                "cpu_seconds": verdict["cpu_seconds"] if verdict else None,
                "claims": [{**claim, "full": full.get(claim["id"])} for claim in claims],
            }
        rows.append(row)
    statuses = Counter(claim["status"] for row in rows for claim in row["claims"])
    return {
        "parts": part_titles(),
        "papers": rows,
        "totals": {
            "papers": len(rows),
            "written": sum(row["state"] == "written" for row in rows),
            "planned": sum(row["state"] == "planned" for row in rows),
            "claims": sum(statuses.values()),
            **{status: statuses[status] for status in STATUSES},
            "recorded at full scale": sum(bool(c["full"]) for row in rows for c in row["claims"]),
        },
    }


def _recorded_claims(path: Path) -> dict[str, dict[str, Any]]:
    """Judged claims of the newest recorded full-scale run, by id."""
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    except (OSError, ValueError, KeyError):
        return {}
    if not runs:
        return {}
    claims = runs[-1]["verdict"]["claims"]
    return {c["id"]: {"ours": c["ours"], "status": c["status"]} for c in claims if c["status"] != "full-scale"}
