"""Scores that chapters share: the table in a chapter and the one on the page of the part."""

import re

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from glocal.book.catalogue import Chapter
from glocal.book.pages import shared_tables
from glocal.book.shared import MIME, share_scores
from glocal.stats import mean_interval


def test_scores_display_with_their_interval():
    shared = share_scores("a task", {"A": [80.0, 82.0, 84.0, 81.0, 83.0]}, settings={"A": "64 wide <b>"})
    interval = mean_interval(np.array([80.0, 82.0, 84.0, 81.0, 83.0]))
    bundle = shared._repr_mimebundle_()
    assert f"{interval.low:.1f} to {interval.high:.1f}" in bundle["text/html"]
    assert "64 wide &lt;b&gt;" in bundle["text/html"]
    assert "chapter" not in bundle["text/html"]
    assert bundle[MIME]["methods"] == [{"method": "A", "setting": "64 wide <b>", "scores": [80, 82, 84, 81, 83]}]
    assert "A: 82.0" in bundle["text/plain"]
    assert "A: 80.0" in str(share_scores("a task", {"A": [80.0]}))


@pytest.mark.parametrize(
    ("scores", "settings", "message"),
    [
        ({}, None, "same number of runs"),
        ({"A": []}, None, "at least one"),
        ({"A": [1.0], "B": [1.0, 2.0]}, None, "same number of runs"),
        ({"A": [float("nan")]}, None, "finite"),
        ({"A": [1.0]}, {"B": "wide"}, "settings must be about methods that have scores, got B"),
    ],
)
def test_bad_scores_are_errors(scores, settings, message):
    with pytest.raises(ValueError, match=message):
        share_scores("a task", scores, settings=settings)


def test_the_part_page_sorts_the_methods_of_all_chapters(tmp_path):
    chapters = []
    for slug, scores in (("one", {"low": [1.0], "high": [9.0]}), ("two", {"middle": [5.0]}), ("three", {})):
        bundle = share_scores("a task", scores)._repr_mimebundle_() if scores else {"text/plain": "1"}
        output = new_output("display_data", data=bundle)
        cells = [new_markdown_cell(f"# Title {slug}\n\n*Summary.*"), new_code_cell("1", outputs=[output])]
        chapter = Chapter(tmp_path, slug, "graphs", {})
        chapter.notebook.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(new_notebook(cells=cells), chapter.notebook)
        chapters.append(chapter)
    page = shared_tables(chapters)
    assert page.count("<table") == 1
    methods = re.findall(r'data-label="method">(\w+)<', page)
    assert methods == ["high", "middle", "low"]
    assert '<a href="../chapters/graphs/two.html">Title two</a>' in page
    assert "Title three" not in page
    assert shared_tables(chapters[2:]) == ""
