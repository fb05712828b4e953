"""What makes a notebook a chapter: claims and verdicts, the source on display, the plot style.

Everything that a chapter needs is exported here. Building the book itself lives in `glocal.book.site`.
"""

from glocal.book.claims import Claim, Criterion, above, below, between, claim_table
from glocal.book.display import show_source
from glocal.book.verdict import Verdict, judge

__all__ = [
    "Claim",
    "Criterion",
    "Verdict",
    "above",
    "below",
    "between",
    "claim_table",
    "judge",
    "show_source",
]
