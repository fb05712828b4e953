"""Scores on a task that several chapters share: displayed in each chapter, gathered on the page of the part."""

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from glocal.stats import Interval, mean_interval

MIME = "application/vnd.glocal.shared-scores+json"


@dataclass(frozen=True)
class SharedScores:
    """Scores of several methods on one task, one per run; displays as a table and carries its JSON.

    Args:
        task: what is measured on what, in the same words in every chapter.
        unit: unit of the scores, e.g. `"%"`.
        scores: for each method one score per run; equal runs have equal splits in all chapters.
        settings: for each method what a reader must know to compare it (features, width, ...); may lack methods.
    """

    task: str
    unit: str
    scores: Mapping[str, Float[np.ndarray, " runs"]]
    settings: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The scores as plain data (MIME type `application/vnd.glocal.shared-scores+json`)."""
        methods = [
            {"method": method, "setting": self.settings.get(method, ""), "scores": [round(float(s), 4) for s in scores]}
            for method, scores in self.scores.items()
        ]
        return {"task": self.task, "unit": self.unit, "methods": methods}

    def __str__(self) -> str:
        rows = [f"{method}: {_interval_text(mean_interval(scores))}" for method, scores in self.scores.items()]
        return "\n".join([f"{self.task} ({self.unit})", *rows])

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        table = shared_table([("", self.to_json())])
        return {"text/html": table, "text/plain": str(self), MIME: self.to_json()}


def share_scores(
    task: str, scores: Mapping[str, Any], *, unit: str = "%", settings: Mapping[str, str] | None = None
) -> SharedScores:
    """Put the scores of a chapter's methods on the table of a task that several chapters share.

    Args:
        task: the task's name, equal in all chapters.
        scores: for each method one score per run, as anything that numpy reads as numbers.
        unit: unit of the scores.
        settings: for each method, where needed, a few words about its setting.

    Raises:
        ValueError: for no methods, no or non-finite scores, or different numbers of runs.
    """
    arrays = {method: np.atleast_1d(np.asarray(values, dtype=float)).ravel() for method, values in scores.items()}
    sizes = {array.size for array in arrays.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"scores must have the same number of runs for every method, at least one, got {sizes}")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ValueError("scores must be finite")
    unknown = set(settings or {}) - set(arrays)
    if unknown:
        raise ValueError(f"settings must be about methods that have scores, got {', '.join(sorted(unknown))}")
    return SharedScores(task, unit, arrays, dict(settings or {}))


def shared_table(chapters: Iterable[tuple[str, dict[str, Any]]]) -> str:
    """HTML table of the scores of one task.

    Args:
        chapters: HTML of the chapter's link (empty to leave the column out) and the JSON of its scores.
    """
    rows = list(chapters)
    has_links = any(link for link, _ in rows)
    unit = rows[0][1]["unit"]
    columns = ["method", *(["chapter"] if has_links else []), f"mean ({unit})", f"95 % interval ({unit})", "runs"]
    body = []
    for link, shared in rows:
        for entry in shared["methods"]:
            interval = mean_interval(np.array(entry["scores"]))
            low, high = interval.low, interval.high
            setting = f"<br><small>{html.escape(entry['setting'])}</small>" if entry["setting"] else ""
            cells = [
                html.escape(entry["method"]) + setting,
                *([link] if has_links else []),
                f"{interval.value:.1f}",
                "-" if low is None or high is None else f"{low:.1f} to {high:.1f}",
                str(interval.n),
            ]
            tags = "".join(
                f'<td data-label="{html.escape(name, quote=True)}">{cell}</td>'
                for name, cell in zip(columns, cells, strict=True)
            )
            body.append((-interval.value, f"<tr>{tags}</tr>"))
    if has_links:
        body.sort(key=lambda row: row[0])
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    caption = f"<caption>{html.escape(rows[0][1]['task'])}</caption>"
    lines = "".join(row for _, row in body)
    return f'<table class="glocal-verdict">{caption}<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>'


def _interval_text(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.value:.1f}"
    return f"{interval.value:.1f} [{interval.low:.1f}, {interval.high:.1f}]"
