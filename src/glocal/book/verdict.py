"""Judging claims: measurements over seeds in, statuses out."""

import html
import importlib.metadata
import platform
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import psutil

from glocal.book.claims import Claim, Criterion
from glocal.budget import SCALES
from glocal.stats import Interval, mean_interval, paired_interval

Status = Literal["holds", "fails", "inconclusive", "full-scale"]
MIME = "application/vnd.glocal.verdict+json"
SMALLEST_SAMPLE = 3
SYMBOLS = {"holds": "✓", "fails": "✗", "inconclusive": "≈", "full-scale": "◌"}
PACKAGES = ("glocal", "torch", "numpy", "scipy", "scikit-learn")
# one value per seed as anything that numpy reads as numbers, or a pair of such series, or None
Measurement = Any


@dataclass(frozen=True)
class Judgement:
    """A claim with what we measured and the status that follows from it."""

    claim: Claim
    ours: Interval | None
    status: Status
    note: str = ""

    @property
    def margin(self) -> float | None:
        """Distance from the threshold to the nearer end of our interval; negative if the interval crosses it.

        The sign is that of the status: positive for a clear `holds` and for a clear `fails`.
        """
        criterion, ours = self.claim.criterion, self.ours
        if criterion is None or ours is None or ours.low is None or ours.high is None:
            return None
        inside = min(ours.low - criterion.low, criterion.high - ours.high)
        return inside if self.status != "fails" else max(criterion.low - ours.high, ours.low - criterion.high)

    def to_json(self) -> dict[str, Any]:
        """The claim as it appears under the verdict's MIME type."""
        ours, criterion = self.ours, self.claim.criterion
        return {
            "id": self.claim.id,
            "statement": self.claim.statement,
            "paper": self.claim.paper,
            "source": self.claim.source,
            "ours": None
            if ours is None
            else {
                "value": ours.value,
                "low": ours.low,
                "high": ours.high,
                "n": ours.n,
                "unit": criterion.unit if criterion is not None else "",
            },
            "criterion": self.claim.criterion_text,
            "status": self.status,
            "note": self.note,
        }


def status_of(criterion: Criterion, ours: Interval) -> Status:
    """Status of a claim from its criterion and the interval of the measured quantity.

    An exact quantity holds if all of its values satisfy the criterion and fails otherwise. A random one
    holds if the interval lies inside the criterion, fails if it lies outside, and is inconclusive if it
    straddles a threshold or rests on fewer than three seeds.
    """
    low, high = ours.low, ours.high
    if criterion.is_exact:
        if low is None or high is None:
            low = high = ours.value
        return "holds" if criterion.low < low and high < criterion.high else "fails"
    if ours.n < SMALLEST_SAMPLE or low is None or high is None:
        return "inconclusive"
    if criterion.low < low and high < criterion.high:
        return "holds"
    if high <= criterion.low or low >= criterion.high:
        return "fails"
    return "inconclusive"


def _measure(claim: Claim, measurement: Measurement) -> Interval:
    """Turn a claim's measurements into an interval; a tuple holds two paired series."""
    try:
        if isinstance(measurement, tuple):
            if len(measurement) != 2:
                raise ValueError(f"a pair is (method, baseline), got {len(measurement)} series")
            sides = [np.atleast_1d(np.asarray(side, dtype=float)).ravel() for side in measurement]
            interval = paired_interval(sides[0], sides[1])
            values = sides[0] - sides[1]
        else:
            values = np.atleast_1d(np.asarray(measurement, dtype=float)).ravel()
            interval = mean_interval(values)
    except ValueError as error:
        raise ValueError(f"claim {claim.id}: {error}") from error
    if claim.criterion is not None and claim.criterion.is_exact:
        return Interval(float(values.mean()), float(values.min()), float(values.max()), values.size)
    return interval


def judge(
    measurements: Mapping[Claim, Measurement],
    *,
    slug: str,
    scale: str = "small",
    notes: Mapping[Claim, str] | None = None,
) -> "Verdict":
    """Judge every claim of a chapter by the criterion it was declared with.

    Args:
        measurements: for each claim either one value per seed, or a tuple `(method, baseline)` of two such
            series paired by seed, or None for a claim that needs full scale.
        slug: the chapter.
        scale: `"small"`, `"full"` or `"rehearsal"`. A rehearsal is never judged: statuses are inconclusive.
        notes: explanations of findings; a claim that fails or stays inconclusive must have one in the book.

    Returns:
        The verdict, which displays as a table and carries its JSON.

    Raises:
        ValueError: for no claims, repeated ids, empty or non-finite measurements, series of unequal length,
            a measurement without a criterion, or a missing measurement of a testable claim.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    ids = [claim.id for claim in measurements]
    if not ids or len(set(ids)) < len(ids):
        raise ValueError(f"judge needs claims with distinct ids, got {', '.join(ids) or 'none'}")
    notes = notes or {}
    judgements = []
    for claim, measurement in measurements.items():
        note = notes.get(claim, "")
        if measurement is None:
            if not claim.needs:
                raise ValueError(
                    f"claim {claim.id} is testable ({claim.criterion}) but has no measurement: "
                    "measure it, or say in Claim(needs=...) what full scale takes"
                )
            judgements.append(Judgement(claim, None, "full-scale", note or claim.needs))
            continue
        if claim.criterion is None:
            raise ValueError(f"claim {claim.id} has a measurement but no criterion: declare one in Claim(...)")
        ours = _measure(claim, measurement)
        status = status_of(claim.criterion, ours)
        if scale == "rehearsal":
            status, note = "inconclusive", "rehearsal: two steps on fake data, not judged"
        elif status == "inconclusive" and not note and ours.n < SMALLEST_SAMPLE:
            note = f"only {ours.n} seeds; a status needs at least {SMALLEST_SAMPLE}"
        judgements.append(Judgement(claim, ours, status, note))
    return Verdict(slug, scale, tuple(judgements))


@dataclass(frozen=True)
class Verdict:
    """The judged claims of one chapter with the time it took to get there."""

    slug: str
    scale: str
    judgements: tuple[Judgement, ...]
    cpu_seconds: float = field(default_factory=lambda: _cpu_seconds())
    wall_seconds: float = field(default_factory=lambda: time.time() - psutil.Process().create_time())

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain data (MIME type `application/vnd.glocal.verdict+json`)."""
        return {
            "slug": self.slug,
            "scale": self.scale,
            "cpu_seconds": round(self.cpu_seconds, 1),
            "wall_seconds": round(self.wall_seconds, 1),
            "claims": [judgement.to_json() for judgement in self.judgements],
            "versions": _versions(),
        }

    def print_statuses(self) -> None:
        """Print ids and statuses only: the one output that must be the same on every machine."""
        for judgement in self.judgements:
            print(f"{judgement.claim.id} {judgement.status}")

    def __str__(self) -> str:
        return "\n".join(
            f"{j.claim.id} {j.status}: {format_interval(j)} [{j.claim.criterion_text}]" for j in self.judgements
        )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {"text/html": self._to_html(), "text/plain": str(self), MIME: self.to_json()}

    def _to_html(self) -> str:
        head = "<tr><th>claim</th><th>the paper says</th><th>we measure</th><th>holds if</th><th>status</th></tr>"
        rows = []
        for judgement in self.judgements:
            claim, note = judgement.claim, judgement.note
            cells = [
                f'<td><span class="glocal-id">{claim.id}</span> {html.escape(claim.statement)}</td>',
                f'<td data-label="the paper says">{html.escape(claim.paper)}</td>',
                f'<td data-label="we measure">{html.escape(format_interval(judgement))}</td>',
                f'<td data-label="holds if">{html.escape(claim.criterion_text)}</td>',
                f'<td data-label="status">{status_chip(judgement.status)}</td>',
            ]
            rows.append(f"<tr>{''.join(cells)}</tr>")
            if note:
                rows.append(f'<tr class="glocal-note"><td colspan="5">{claim.id}: {html.escape(note)}</td></tr>')
        return f'<table class="glocal-verdict"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def status_chip(status: str, label: str = "") -> str:
    """HTML chip of a status; `label` stands before the status word, e.g. a claim's id."""
    text = f"{label} {status}".strip()
    return f'<span class="glocal-status glocal-{status}">{SYMBOLS[status]} {html.escape(text)}</span>'


def format_interval(judgement: Judgement) -> str:
    """Our figure in words: value, interval, number of seeds and distance to the threshold."""
    ours, criterion = judgement.ours, judgement.claim.criterion
    if ours is None or criterion is None:
        return "not tested at this scale"
    unit = f" {criterion.unit}" if criterion.unit else ""
    if ours.low is None or ours.high is None:
        return f"{ours.value:.3g}{unit} (one value)"
    if criterion.is_exact:
        return f"{ours.low:.3g} … {ours.high:.3g}{unit} ({ours.n} values)"
    margin = judgement.margin
    tail = f"; margin {margin:.2g}" if margin is not None else ""
    return f"{ours.value:.3g}{unit} [{ours.low:.3g}, {ours.high:.3g}] ({ours.n} seeds{tail})"


def _cpu_seconds() -> float:
    """CPU time of this process and its finished children so far, in seconds."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        versions[package] = importlib.metadata.version(package)
    return versions
