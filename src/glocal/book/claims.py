"""Claims of a paper, each with the criterion that will judge it, written down before any result exists."""

import html
import math
import re
from dataclasses import dataclass

from glocal.book.display import HtmlBlock


@dataclass(frozen=True)
class Criterion:
    """The set of values of a measured quantity for which a claim holds: the open interval (`low`, `high`).

    Build one with `above`, `below` or `between`.

    Args:
        quantity: what is measured, in words, with the direction of a difference ("recall@20, A - B").
        low: the claim holds above this value.
        high: the claim holds below this value.
        unit: unit of the quantity and of the thresholds ("points", "s"); empty for pure numbers.
        is_exact: the quantity is deterministic (a theorem, a closed form): every single value must satisfy
            the criterion and no interval is drawn.
    """

    quantity: str
    low: float = -math.inf
    high: float = math.inf
    unit: str = ""
    is_exact: bool = False

    def __post_init__(self) -> None:
        if not self.quantity.strip():
            raise ValueError("a criterion needs the measured quantity in words, got an empty text")
        if math.isnan(self.low) or math.isnan(self.high) or self.low >= self.high:
            raise ValueError(f"a criterion needs low < high, got low={self.low} and high={self.high}")
        if math.isinf(self.low) and math.isinf(self.high):
            raise ValueError("a criterion needs a finite threshold: use above, below or between")

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        if math.isinf(self.high):
            rule = f"> {self.low:g}{unit}"
        elif math.isinf(self.low):
            rule = f"< {self.high:g}{unit}"
        else:
            rule = f"in ({self.low:g}, {self.high:g}){unit}"
        return f"{self.quantity} {rule}" + (", for every value" if self.is_exact else "")


def above(threshold: float, quantity: str, *, unit: str = "", exact: bool = False) -> Criterion:
    """The claim holds if `quantity` is above `threshold`; `exact` for deterministic quantities."""
    return Criterion(quantity, low=threshold, unit=unit, is_exact=exact)


def below(threshold: float, quantity: str, *, unit: str = "", exact: bool = False) -> Criterion:
    """The claim holds if `quantity` is below `threshold`; `exact` for deterministic quantities."""
    return Criterion(quantity, high=threshold, unit=unit, is_exact=exact)


def between(low: float, high: float, quantity: str, *, unit: str = "", exact: bool = False) -> Criterion:
    """The claim holds if `quantity` lies between `low` and `high`; `exact` for deterministic quantities."""
    return Criterion(quantity, low=low, high=high, unit=unit, is_exact=exact)


@dataclass(frozen=True)
class Claim:
    """One claim of a paper.

    Args:
        id: `"C1"`, `"C2"`, ... as in the paper's list of claims; a part of a claim adds a letter (`"C1b"`).
        statement: the claim, one sentence.
        paper: the paper's own figure, or what it reports in words.
        source: where the paper says so (section, table, abstract).
        criterion: what will be measured and when the claim holds; None if it cannot be tested at small scale.
        needs: what a test needs at full scale; required where `criterion` is None.
    """

    id: str
    statement: str
    paper: str
    source: str
    criterion: Criterion | None = None
    needs: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"C[1-9]\d*[a-z]?", self.id):
            raise ValueError(f"a claim's id must look like C1 or C1b, got {self.id!r}")
        for name in ("statement", "paper", "source"):
            if not getattr(self, name).strip():
                raise ValueError(f"claim {self.id} needs a text for {name!r}, got an empty one")
        if self.criterion is None and not self.needs.strip():
            raise ValueError(
                f"claim {self.id} has no criterion: say in `needs` what a test at full scale takes "
                "(data, hardware, hours), or give it a criterion"
            )

    @property
    def criterion_text(self) -> str:
        """The criterion in words; for a claim that needs full scale, what it needs."""
        return str(self.criterion) if self.criterion is not None else f"full scale: {self.needs}"


def claim_table(*claims: Claim) -> HtmlBlock:
    """Table of the claims, the paper's figures and our criteria, for the section that precedes all results.

    Raises:
        ValueError: for two claims with one id, or none at all.
    """
    if not claims:
        raise ValueError("claim_table needs at least one claim")
    ids = [claim.id for claim in claims]
    if len(set(ids)) < len(ids):
        raise ValueError(f"claims need distinct ids, got {', '.join(ids)}")
    head = "<tr><th>claim</th><th>the paper says</th><th>source</th><th>holds here if</th></tr>"
    rows = [
        f'<tr><td><span class="glocal-id">{claim.id}</span> {html.escape(claim.statement)}</td>'
        f'<td data-label="the paper says">{html.escape(claim.paper)}</td>'
        f'<td data-label="source">{html.escape(claim.source)}</td>'
        f'<td data-label="holds here if">{html.escape(claim.criterion_text)}</td></tr>'
        for claim in claims
    ]
    text = "\n".join(f"{c.id}: {c.statement} [{c.paper}; {c.source}] -> {c.criterion_text}" for c in claims)
    return HtmlBlock(f'<table class="glocal-claims"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>', text)
