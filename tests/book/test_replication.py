"""Statuses that differ between seeds: they can only become inconclusive, and say so."""

import json

import nbformat
import numpy as np
import pytest

from glocal.book import Claim, above, judge, pages
from glocal.book.catalogue import Chapter
from glocal.book.replication import (
    own_status,
    recorded_replications,
    replicated,
    replication_file,
    statuses_by_seed,
)
from glocal.book.site import _above_heading
from glocal.book.verdict import MIME

UP, DOWN, FLAT = np.array([1.0, 1.1, 1.2, 1.3]), np.array([-1.0, -1.1, -1.2, -1.3]), np.array([-1.0, 1.1, -1.2, 1.3])
RISE = above(0.0, "rise")
CLAIMS = [Claim(f"C{k}", "it rises", paper="rises", source="abstract", criterion=RISE) for k in range(1, 5)]
OURS = {"value": 1.0, "low": 0.5, "high": 1.5, "n": 4, "unit": "points"}


def verdict(scale: str = "small", seed_values=(UP, DOWN, FLAT, UP)):
    return judge(dict(zip(CLAIMS, seed_values, strict=True)), slug="dkm", scale=scale, notes={CLAIMS[0]: "Why."})


def write_record(root, statuses_of_seed):
    runs = [
        {"seed": seed, "code_hash": "abc", "claims": {name: {"status": s, "ours": OURS} for name, s in found.items()}}
        for seed, found in statuses_of_seed.items()
    ]
    path = replication_file("dkm", root)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"slug": "dkm", "runs": runs}))


def statuses(judged):
    return [judgement.status for judgement in judged.judgements]


def test_statuses_that_differ_become_inconclusive_and_all_else_stays(tmp_path):
    first = {"C1": "holds", "C2": "fails", "C3": "inconclusive"}
    write_record(tmp_path, {1000: {**first, "C1": "inconclusive", "C3": "holds"}, 0: first})
    before = verdict()
    after = replicated(before, tmp_path)
    assert statuses(before) == ["holds", "fails", "inconclusive", "holds"]
    assert statuses(after) == ["inconclusive", "fails", "inconclusive", "holds"]
    assert [j.ours for j in after.judgements] == [j.ours for j in before.judgements]
    assert after.judgements[0].note == (
        "Why. The status depends on the seed (seed 0: holds, seed 1000: inconclusive; this run alone: holds)."
    )
    assert after.judgements[1] == before.judgements[1]
    assert after.judgements[3] == before.judgements[3]  # not in the record


def test_the_status_of_a_run_by_itself_is_kept(tmp_path):
    write_record(tmp_path, {1000: {"C1": "fails", "C2": "fails"}})
    claims = replicated(verdict(), tmp_path).to_json()["claims"]
    assert [own_status(claim) for claim in claims] == ["holds", "fails", "inconclusive", "holds"]
    assert [claim["status"] for claim in claims] == ["inconclusive", "fails", "inconclusive", "holds"]
    assert "seed 1000: fails" in str(claims[0])


def test_agreement_elsewhere_does_not_help_a_run_that_differs(tmp_path):
    write_record(tmp_path, {seed: {"C3": "holds", "C2": "holds"} for seed in (0, 1000)})
    assert statuses(replicated(verdict(), tmp_path)) == ["holds", "inconclusive", "inconclusive", "holds"]


@pytest.mark.parametrize("scale", ["full", "rehearsal"])
def test_other_scales_are_left_alone(tmp_path, scale):
    write_record(tmp_path, {0: {"C1": "fails"}})
    before = verdict(scale)
    assert replicated(before, tmp_path) is before


def test_without_a_record_nothing_changes(tmp_path):
    assert replicated(verdict(), tmp_path).judgements == verdict().judgements


@pytest.mark.parametrize("text", ["{", "[]", '{"runs": [{}]}', '{"runs": 1}'])
def test_a_damaged_record_says_what_to_do(tmp_path, text):
    write_record(tmp_path, {0: {"C1": "holds"}})
    replication_file("dkm", tmp_path).write_text(text)
    with pytest.raises(ValueError, match="restore it with git"):
        replicated(verdict(), tmp_path)


def test_runs_come_by_seed(tmp_path):
    write_record(tmp_path, {1000: {"C1": "holds"}, 0: {"C1": "fails"}})
    runs = recorded_replications("dkm", tmp_path)
    assert [run["seed"] for run in runs] == [0, 1000]
    assert statuses_by_seed(runs) == {"C1": {0: "fails", 1000: "holds"}}


def chapter_with(root, judged):
    """A chapter whose executed notebook holds this verdict."""
    entry = Chapter(root, "dkm", "theory", {})
    output = nbformat.v4.new_output("display_data", {MIME: judged.to_json()})
    cell = nbformat.v4.new_code_cell("verdict", outputs=[output])
    entry.notebook.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), entry.notebook)
    return entry


def test_the_page_tells_what_other_seeds_say(tmp_path):
    assert pages.replication_section(chapter_with(tmp_path, verdict())) == ""
    write_record(tmp_path, {1000: {"C1": "holds", "C2": "fails", "C3": "inconclusive", "C4": "holds"}})
    agreeing = pages.replication_section(chapter_with(tmp_path, replicated(verdict(), tmp_path)))
    assert "seed 1000 give the same status for all claims" in agreeing
    write_record(tmp_path, {0: {"C1": "holds"}, 1000: {"C1": "fails"}})
    differing = pages.replication_section(chapter_with(tmp_path, replicated(verdict(), tmp_path)))
    assert "seed 0 and 1000 give the same status for 3 of 4 claims" in differing
    assert differing.count("<tr>") == 2
    assert "✗ fails</span> 1 points [0.5, 1.5]" in differing


def test_blocks_go_above_their_heading():
    text = "Text\n## Here\n### ## Here\nmore"
    assert _above_heading(text, "## Here", "<p>") == "Text\n<p>\n\n## Here\n### ## Here\nmore"
    assert _above_heading(text, "## Here", "") == text
    assert _above_heading(text, "## There", "<p>") == text
