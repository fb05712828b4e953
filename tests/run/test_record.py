"""Recording full-scale runs, scaffolding chapters, and the doctor."""

import json

import pytest

from glocal.book.catalogue import CatalogueError, Chapter, chapter, read_header
from glocal.book.notebooks import code_hash
from glocal.book.replication import recorded_replications
from glocal.run.chapters import regenerate_one
from glocal.run.check import _replication_problems
from glocal.run.doctor import requirement_states
from glocal.run.files import write_json, write_text
from glocal.run.record import RecordError, record, recorded_runs
from glocal.run.scaffold import scaffold


def write_run(folder, *, scale="full", status="done", value=1.0, parameters=None, code="def"):
    claim = {
        "id": "C1",
        "statement": "it works",
        "paper": "works",
        "source": "abstract",
        "ours": {"value": value, "low": 0.9, "high": 1.1, "n": 5, "unit": ""},
        "criterion": "gain > 0",
        "status": "holds",
        "note": "",
    }
    verdict = {"slug": "dkm", "scale": scale, "cpu_seconds": 1, "wall_seconds": 1, "claims": [claim], "versions": {}}
    result = {"slug": "dkm", "status": status, "error": "boom", "verdict": verdict}
    write_json(folder / "result.json", {**result, "cpu_seconds": 1.0, "wall_seconds": 2.0, "peak_memory_gb": 0.5})
    origin = {"scale": scale, "parameters": parameters or {"seed": 0}, "start": "2025-01-01T00:00:00+00:00"}
    origin |= {"end": "2025-01-01T01:00:00+00:00", "source_hash": "abc", "code_hash": code, "git": None, "data": {}}
    write_json(folder / "provenance.json", {**origin, "hardware": {"gpus": []}, "packages": {"torch": "2", "x": "1"}})


def test_a_full_scale_run_is_recorded_and_replaced(project):
    project.write("dkm")
    write_run(project.root / "runs" / "one", value=1.0)
    entry, path = record(project.root / "runs" / "one", project.root)
    assert path == project.root / "book" / "results" / "dkm.json"
    write_run(project.root / "runs" / "two", value=2.0)
    record(project.root / "runs" / "two", project.root)
    (run,) = recorded_runs(entry)  # same parameters and sources: replaced
    assert run["verdict"]["claims"][0]["ours"]["value"] == 2.0
    assert run["packages"] == {"torch": "2"}
    write_run(project.root / "runs" / "three", parameters={"seed": 1})
    record(project.root / "runs" / "three", project.root)
    assert len(recorded_runs(entry)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": "rehearsal"}, "of scale 'rehearsal'.*--full"),
        ({"status": "failed"}, "boom"),
        ({"scale": "small"}, "code of dkm has changed"),
        ({"scale": "small", "parameters": {"seed": 1000, "rate": 0.1}}, "sets rate: .* its seed only"),
    ],
)
def test_other_runs_are_not_recorded(project, change, message):
    project.write("dkm")
    write_run(project.root / "runs" / "one", **change)
    with pytest.raises(RecordError, match=message):
        record(project.root / "runs" / "one", project.root)


def write_replication(project, seed, **change):
    code = code_hash(chapter("dkm", project.root))
    write_run(project.root / "runs" / "one", scale="small", parameters={"seed": seed}, code=code, **change)
    return record(project.root / "runs" / "one", project.root)


def test_a_small_run_with_another_seed_is_a_replication(project):
    project.write("dkm")
    entry, path = write_replication(project, 1000, value=1.0)
    write_replication(project, 0)
    assert path == project.root / "book" / "results" / "replications" / "dkm.json"
    assert not recorded_runs(entry)
    write_replication(project, 1000, value=2.0)  # same seed: replaced
    runs = recorded_replications("dkm", project.root)
    assert [run["seed"] for run in runs] == [0, 1000]
    assert runs[1]["claims"]["C1"]["ours"]["value"] == 2.0
    project.write("dkm", code="a = 1")
    write_replication(project, 7)  # the others were of other code
    assert [run["seed"] for run in recorded_replications("dkm", project.root)] == [7]


def test_a_damaged_record_of_replications_is_not_overwritten(project):
    project.write("dkm")
    _, path = write_replication(project, 0)
    path.write_text("{")
    with pytest.raises(RecordError, match="restore it with git"):
        write_replication(project, 1000)
    assert path.read_text() == "{"


def test_check_finds_statuses_that_depend_on_the_seed(project):
    project.write("dkm")
    entry, path = write_replication(project, 1000)
    regenerate_one(entry)  # its claim holds, as in the record
    assert _replication_problems(entry) == []
    path.write_text(path.read_text().replace("holds", "fails"))
    (problem,) = _replication_problems(entry)
    assert "C1 is stored as 'holds'" in problem
    assert "seed 1000: fails" in problem
    project.write("dkm", code="a = 1")
    (problem,) = _replication_problems(entry)
    assert "code changed since it was replicated with seed 1000" in problem
    path.write_text("{")
    assert "is damaged" in _replication_problems(entry)[0]


def test_a_folder_without_a_run_is_an_error(project):
    with pytest.raises(RecordError, match="holds no run"):
        record(project.root, project.root)


def test_writing_is_atomic(tmp_path):
    write_text(tmp_path / "a" / "file.json", "first")
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a" / "file.json", {"x": float("nan")})  # not valid JSON: the old file stays
    assert (tmp_path / "a" / "file.json").read_text() == "first"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file.json"]


def test_scaffold_fails_the_checks_until_it_is_filled_in(project):
    from glocal.run.check import problems

    created = scaffold("theory", "dkm", project.root)
    names = {path.relative_to(project.root).as_posix() for path in created}
    assert {
        "src/glocal/theory/dkm.py",
        "tests/theory/test_dkm.py",
        "notebooks/theory/dkm.md",
        "notebooks/theory/dkm.full.yaml",
        "_toc.yml",
    } <= names
    header = read_header(project.root / "notebooks" / "theory" / "dkm.md")
    assert header["title"].startswith("A theory of representation learning")
    found = "\n".join(problems(project.root))
    assert "dkm: dkm.py still has a TODO" in found
    assert "dkm: no stored outputs" in found
    assert "_toc.yml" not in found
    with pytest.raises(CatalogueError, match="exist already and were left alone"):
        scaffold("theory", "dkm", project.root)


@pytest.mark.parametrize(
    ("part", "slug", "message"),
    [("theories", "dkm", "there is no part"), ("graphs", "dkm", "belongs to 'theory'"), ("theory", "x", "Papers of")],
)
def test_scaffold_knows_the_list_of_papers(project, part, slug, message):
    with pytest.raises(CatalogueError, match=message):
        scaffold(part, slug, project.root)


def test_correspondence_finds_strays(project):
    from glocal.run.check import correspondence_problems

    project.write("dkm")
    stray = project.root / "book" / "chapters" / "theory" / "gone.ipynb"
    stray.parent.mkdir(parents=True)
    stray.touch()
    entry = Chapter(project.root, "dkm", "theory", {})
    found = "\n".join(correspondence_problems(project.root, [entry]))
    for text in ("module src/glocal/theory/dkm.py is missing", "gone.ipynb belongs to no chapter", "_toc.yml lacks"):
        assert text in found


def test_doctor_reads_requirements(tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text("# comment\nnumpy>=1  # fine\nnumpy==0.1\nno-such-package==1\nother; python_version < '3'\n")
    assert requirement_states(path) == {
        "numpy": requirement_states(path)["numpy"],
        "no-such-package": "not installed",
    }
    assert requirement_states(path)["numpy"].endswith("==0.1 is wanted")


def test_doctor_and_data_speak_json(capsys):
    from glocal.cli import app

    for command in (["doctor", "--json"], ["data", "--json"], ["scoreboard", "--json"], ["list", "--json"]):
        app(command, standalone_mode=False)
        assert json.loads(capsys.readouterr().out)
