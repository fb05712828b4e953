"""Statuses that differ between seeds: they can only become inconclusive, and say so."""

import numpy as np
import pytest

from glocal.book import Claim, above, judge
from glocal.book.replication import replicated

UP, DOWN, FLAT = np.array([1.0, 1.1, 1.2, 1.3]), np.array([-1.0, -1.1, -1.2, -1.3]), np.array([-1.0, 1.1, -1.2, 1.3])
RISE = above(0.0, "rise")
CLAIMS = [Claim(f"C{k}", "it rises", paper="rises", source="abstract", criterion=RISE) for k in range(1, 5)]


def verdict(scale: str = "small", seed_values=(UP, DOWN, FLAT, UP)):
    return judge(dict(zip(CLAIMS, seed_values, strict=True)), slug="dkm", scale=scale, notes={CLAIMS[0]: "Why."})


def test_statuses_that_differ_become_inconclusive_and_all_else_stays():
    before = verdict()
    after = replicated(
        before,
        {
            CLAIMS[0]: {0: "holds", 1000: "inconclusive"},  # this run: holds
            CLAIMS[1]: {0: "fails", 1000: "fails"},  # and fails
            CLAIMS[2]: {0: "inconclusive", 1000: "holds"},  # and inconclusive
        },
    )
    assert [j.status for j in before.judgements] == ["holds", "fails", "inconclusive", "holds"]
    assert [j.status for j in after.judgements] == ["inconclusive", "fails", "inconclusive", "holds"]
    assert [j.ours for j in after.judgements] == [j.ours for j in before.judgements]
    assert after.judgements[0].note == (
        "Why. The status depends on the seed (seed 0: holds, seed 1000: inconclusive; this run alone: holds)."
    )
    assert after.judgements[1] == before.judgements[1]
    assert after.judgements[3] == before.judgements[3]
    assert "seed 1000: inconclusive" in str(after.to_json())


def test_agreement_elsewhere_does_not_help_a_run_that_differs():
    after = replicated(verdict(), {CLAIMS[2]: {0: "holds", 1000: "holds"}, CLAIMS[1]: {0: "holds"}})
    assert [j.status for j in after.judgements] == ["holds", "inconclusive", "inconclusive", "holds"]


@pytest.mark.parametrize("scale", ["full", "rehearsal"])
def test_other_scales_are_left_alone(scale):
    before = verdict(scale)
    assert replicated(before, {CLAIMS[0]: {0: "fails"}}) is before


def test_bad_lists_are_refused():
    stranger = Claim("C9", "it falls", paper="falls", source="abstract", criterion=above(0.0, "fall"))
    with pytest.raises(ValueError, match="C9"):
        replicated(verdict(), {stranger: {0: "holds"}})
    with pytest.raises(ValueError, match="at least one seed"):
        replicated(verdict(), {CLAIMS[0]: {}})
