"""`glocal execute`: only what changed, nothing that drifts, and a failure leaves the stored outputs alone."""

import nbformat
import pytest
import torch

from glocal.book.catalogue import chapter, chapters
from glocal.book.notebooks import imported_modules, is_stale, stored_verdict
from glocal.run.chapters import regenerate_one, renew_text, stale
from glocal.run.check import CPU_BUDGET, STANDARD_SECONDS, chapter_problems
from glocal.run.speed import reference_work, slowness


def drop_times(notebook):
    for name in ("cpu_seconds", "reference_seconds", "peak_memory_gb"):
        notebook.metadata["glocal"].pop(name)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            verdict = output.get("data", {}).get("application/vnd.glocal.verdict+json", {})
            verdict.pop("cpu_seconds", None)
            verdict.pop("wall_seconds", None)


def test_executed_notebook_is_fresh_until_its_source_changes(project):
    project.write("dkm")
    entry = chapter("dkm", project.root)
    assert stale([entry]) == [entry]
    assert regenerate_one(entry).error == ""
    assert stale([entry]) == []
    assert stored_verdict(entry)["claims"][0]["status"] == "holds"
    entry.source.write_text(entry.source.read_text() + "\nOne more sentence.\n")
    assert is_stale(entry)


def test_a_second_execution_gives_the_same_file_but_for_times(project):
    project.write("dkm", "print(sum(range(10)))")
    entry = chapter("dkm", project.root)
    regenerate_one(entry)
    first = nbformat.read(entry.notebook, 4)
    regenerate_one(entry)
    second = nbformat.read(entry.notebook, 4)
    for notebook in (first, second):
        drop_times(notebook)
    assert first == second
    assert "papermill" not in str(first.metadata) + str([cell.metadata for cell in first.cells])


def test_new_prose_executes_nothing_and_gives_the_notebook_of_an_execution(project, monkeypatch):
    project.write("dkm", "print(sum(range(10)))")
    entry = chapter("dkm", project.root)
    assert not renew_text(entry)  # nothing stored yet
    regenerate_one(entry)
    entry.source.write_text(entry.source.read_text().replace("year: 2024", "year: 2025") + "\nOne more sentence.\n")
    with monkeypatch.context() as patched:
        patched.setattr("glocal.run.chapters.execute", None)  # must not be called
        assert renew_text(entry)
    renewed = nbformat.read(entry.notebook, 4)
    assert stale([entry]) == []
    assert renewed.metadata["glocal"]["year"] == 2025
    assert "One more sentence." in renewed.cells[-1].source
    regenerate_one(entry)
    executed = nbformat.read(entry.notebook, 4)
    for notebook in (renewed, executed):
        drop_times(notebook)
    assert renewed == executed


def test_new_code_parameters_or_modules_must_be_executed(project):
    project.write("dkm", "print(sum(range(10)))")
    entry = chapter("dkm", project.root)
    regenerate_one(entry)
    before, text = entry.notebook.read_bytes(), entry.source.read_text()
    for old, new in (("range(10)", "range(11)"), ("tags: [parameters]", "tags: [hide-input]")):
        assert old in text
        entry.source.write_text(text.replace(old, new))
        assert not renew_text(entry)
    entry.source.write_text(text)
    assert renew_text(entry)
    module = project.root / "src" / "glocal" / "book" / "__init__.py"  # which the code imports
    module.parent.mkdir(parents=True)
    module.write_text("NEW = 1\n")
    assert not renew_text(entry)
    assert entry.notebook.read_bytes() == before


def test_a_failure_leaves_the_stored_outputs_alone(project):
    project.write("dkm")
    entry = chapter("dkm", project.root)
    regenerate_one(entry)
    before = entry.notebook.read_bytes()
    project.write("dkm", "1 / 0")
    result = regenerate_one(entry)
    assert "ZeroDivisionError" in result.error
    assert entry.notebook.read_bytes() == before
    assert (project.root / "_build" / "failed" / "dkm.ipynb").exists()
    assert "ZeroDivisionError" in (project.root / "_build" / "failed" / "dkm.txt").read_text()


def test_import_closure_follows_modules_and_packages(tmp_path):
    files = {
        "__init__.py": "",
        "a.py": "from glocal.part import b",
        "part/__init__.py": "import glocal.c",
        "part/b.py": "import torch",
        "c.py": "",
        "unused.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = imported_modules("from glocal.a import x", tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "__init__.py",
        "a.py",
        "c.py",
        "part/__init__.py",
        "part/b.py",
    ]


def test_chapters_come_in_the_order_of_the_list(project):
    project.write("wide_cnn")
    project.write("dkm")
    assert [entry.slug for entry in chapters(project.root)] == ["dkm", "wide_cnn"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  slug: dkm", "  slug: other", "its place says theory/dkm"),
        ("  year: 2024\n", "", "lacks 'year:'"),
        ("  year: 2024", "  year: soon", "must be of type int"),
        ("  venue: arXiv", "  venue: arXiv\n  colour: red", "unknown key 'colour'"),
        ("glocal:", "local:", "needs a mapping under 'glocal:'"),
        ("---\n", "", "must start with a YAML header"),
        ("  venue: arXiv", "  venue: [", "cannot be read"),
    ],
)
def test_headers_are_checked(project, old, new, message):
    from glocal.book.catalogue import CatalogueError

    project.write("dkm")
    source = project.root / "notebooks" / "theory" / "dkm.md"
    source.write_text(source.read_text().replace(old, new))
    with pytest.raises(CatalogueError, match=message):
        chapters(project.root)


@pytest.mark.parametrize(
    ("cpu", "reference", "is_too_long"),
    [(1.01, 1.0, True), (0.99, 1.0, False), (1.5, 1.6, False), (1.7, 1.6, True), (1.01, 0.5, True), (1.01, None, True)],
)
def test_slower_cores_get_more_time_and_faster_ones_no_less(project, cpu, reference, is_too_long):
    """`cpu` in units of the budget, `reference` in units of the standard core's time; None: an older notebook."""
    project.write("dkm")
    entry = chapter("dkm", project.root)
    regenerate_one(entry)
    notebook = nbformat.read(entry.notebook, 4)
    measured = notebook.metadata["glocal"]
    assert measured.pop("reference_seconds") > 0
    measured["cpu_seconds"] = cpu * CPU_BUDGET
    if reference is not None:
        measured["reference_seconds"] = reference * STANDARD_SECONDS
    nbformat.write(notebook, entry.notebook)
    assert any("s of CPU time, more than" in problem for problem in chapter_problems(entry)) == is_too_long


def test_reference_work_is_measured_on_one_thread_and_leaves_the_threads_alone():
    before = torch.get_num_threads()
    assert 0.1 < reference_work() < 30
    assert torch.get_num_threads() == before
    assert slowness(3.0, 2.0) == 1.5
    assert slowness(1.0, 2.0) == 1.0
    with pytest.raises(ValueError, match=r"must be positive, got 0\.0 s and 2"):
        slowness(0.0, 2.0)
