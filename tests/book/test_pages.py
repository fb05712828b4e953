"""Pages that are generated: editions, headers, scoreboard, docstring mathematics, the staged book."""

import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from glocal.book import pages, show_source
from glocal.book.catalogue import chapters, papers, part_titles, project_root
from glocal.book.display import _without_docstrings
from glocal.book.editions import markdown_without_solutions, without_solutions
from glocal.book.notebooks import figure_png, read_source, summary_of
from glocal.book.scoreboard import scoreboard
from glocal.book.site import _below_summary, stage
from glocal.book.sphinx_extension import docstring_markup

GATED = """```{exercise} One
:label: ex-one
Do it.
```

```{solution-start} ex-one
:class: dropdown
```
The secret begins."""
END = """The secret ends.
```{solution-end}
```

```{exercise} Two
:label: ex-two
Do more.
```

````{solution} ex-two
:class: dropdown
Another secret.
```python
1 + 1
```
````
Afterword."""


def test_student_edition_has_no_solutions():
    notebook = new_notebook(
        cells=[new_markdown_cell(GATED), new_code_cell("secret = 1"), new_markdown_cell(END), new_code_cell("x = 1")]
    )
    student = without_solutions(notebook)
    text = "\n".join(cell.source for cell in student.cells)
    assert "ecret" not in text
    assert "solution" not in text
    for kept in ("Do it.", "Do more.", "Afterword.", "x = 1"):
        assert kept in text
    assert "secret = 1" in notebook.cells[1].source  # the original is untouched


def test_an_open_solution_is_an_error():
    with pytest.raises(ValueError, match=r"no \{solution-end\}"):
        without_solutions(new_notebook(cells=[new_markdown_cell(GATED)]))
    with pytest.raises(ValueError, match=r"no \{solution-end\}"):
        markdown_without_solutions(GATED)


def test_docstring_markupematics_becomes_roles():
    assert docstring_markup("a $x_i$ and `$HOME`") == "a :math:`x_i` and ``$HOME``"
    assert docstring_markup("$a)$, `b` and ``c`` :py:func:`d`") == ":math:`a)`, ``b`` and ``c`` :py:func:`d`"
    assert docstring_markup("$$a\n b$$").strip() == ".. math:: a b"
    assert docstring_markup("costs $5 and $6") == "costs $5 and $6"


def test_shown_source_is_the_source():
    shown = show_source(docstring_markup, docstring=False)._repr_mimebundle_()["text/markdown"]
    assert shown.startswith("```python\ndef docstring_markup(text: str) -> str:")
    assert "reStructuredText" not in shown
    assert "glocal/book/sphinx_extension.py" in shown
    assert "reStructuredText" in repr(show_source(docstring_markup))
    with pytest.raises(ValueError, match="at least one"):
        show_source()


def test_docstrings_are_dropped_and_comments_stay():
    lines = ["class A:", '    """Doc."""', "", "    def f(self):", '        """Doc', '        more."""']
    source = "\n".join([*lines, "        # why", "        return 1"])
    assert _without_docstrings(source) == "class A:\n    def f(self):\n        # why\n        return 1"


def test_header_goes_below_the_summary():
    text, done = _below_summary("(sec-x)=\n# Title\n\n*Summary.*\n\nText", "HEAD")
    assert done
    assert text.split() == ["(sec-x)=", "#", "Title", "*Summary.*", "HEAD", "Text"]
    assert _below_summary("# Title\n\nText", "HEAD") == ("# Title\n\nText", False)


def test_key_figure_is_found_by_name():
    cell = new_code_cell("plot()", metadata={"mystnb": {"figure": {"name": "fig-x"}}})
    cell.outputs = [new_output("display_data", {"image/png": "AAAA"})]
    notebook = new_notebook(cells=[cell])
    assert figure_png(notebook, "fig-x") == "AAAA"
    assert figure_png(notebook, "fig-y") is None


def test_list_of_papers_is_complete():
    assert len(papers()) == 66
    assert len({paper.slug for paper in papers()}) == 66
    assert set(part_titles()) == {paper.part for paper in papers()}


def test_scoreboard_covers_every_paper():
    root = project_root()
    board = scoreboard(root)
    assert [row["slug"] for row in board["papers"]] == [paper.slug for paper in papers()]
    totals = board["totals"]
    assert totals["written"] == len(chapters(root))
    assert totals["written"] + totals["planned"] == totals["papers"] == 66
    assert sum(totals[s] for s in ("holds", "fails", "inconclusive", "full-scale")) == totals["claims"]
    html = pages.scoreboard_html(board)
    assert html.count("<tbody") == 66
    json.dumps(board, allow_nan=False)


def test_bibliography_derives_from_headers():
    text = pages.bibliography_entries(chapters(project_root()))
    for chapter in chapters(project_root()):
        assert f"{{{chapter.header['cite']}," in text
        assert f"arXiv:{chapter.header['arxiv']}" in text


def test_every_source_has_a_title_and_a_summary():
    for chapter in chapters(project_root()):
        heading, summary = summary_of(read_source(chapter.source))
        assert heading
        assert summary


@pytest.fixture(scope="module")
def staged():
    root = project_root()
    return {edition: stage(root, edition) for edition in ("teacher", "student")}


def test_staged_editions_differ_by_the_solutions_only(staged):
    for chapter in chapters(project_root()):
        name = f"book/chapters/{chapter.part}/{chapter.slug}.ipynb"
        teacher, student = (nbformat.read(staged[e] / name, 4) for e in ("teacher", "student"))
        text = {e: "\n".join(c.source for c in nb.cells) for e, nb in (("t", teacher), ("s", student))}
        assert "{solution" in text["t"]
        assert "{solution" not in text["s"]
        assert text["t"].count("{exercise}") == text["s"].count("{exercise}") == 3
        assert 'class="glocal-chips"' in text["s"]


def test_staging_again_touches_nothing(staged):
    before = {path: path.stat().st_mtime_ns for path in staged["student"].rglob("*") if path.is_file()}
    stage(project_root(), "student")
    assert before == {path: path.stat().st_mtime_ns for path in staged["student"].rglob("*") if path.is_file()}


def test_unknown_edition_is_an_error():
    with pytest.raises(ValueError, match="teacher, student"):
        stage(project_root(), "pirate")
