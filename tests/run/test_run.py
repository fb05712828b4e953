"""`glocal run`: complete folders, failures that do not stop a batch, interruptions that lose nothing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import Future

import nbformat
import psutil
import pytest

from glocal.run.batch import collect, remembered_interrupts
from glocal.run.job import Job

COMMAND = [sys.executable, "-m", "glocal.cli", "run"]
ENVIRONMENT = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}


def glocal_run(project, *arguments):
    return subprocess.run(
        [*COMMAND, *arguments], cwd=project.root, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )


def start(project, *arguments):
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=project.root,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_a_run_leaves_notebook_result_and_provenance(project):
    project.write("dkm", "widths.append(16)")
    done = glocal_run(project, "dkm", "-p", "seed=7", "--json")
    assert done.returncode == 0, done.stderr
    (outcome,) = json.loads(done.stdout)
    (folder,) = project.runs("dkm")
    assert (outcome["status"], outcome["folder"]) == ("done", str(folder))
    assert outcome["verdict"]["claims"][0]["ours"]["value"] == pytest.approx(8.1)
    assert {path.name for path in folder.iterdir()} == {"dkm.ipynb", "result.json", "provenance.json"}
    origin = json.loads((folder / "provenance.json").read_text())
    assert origin["parameters"] == {"seed": 7}
    assert origin["packages"]["glocal"] == "0.1.0"
    assert origin["start"] <= origin["end"]
    assert origin["data"]["digits"]  # named by the default of `dataset`
    assert 0 < outcome["cpu_seconds"] < 60
    assert project.leftovers() == []


def test_a_failing_chapter_keeps_its_traceback_and_the_batch_goes_on(project):
    project.write("dkm", "x = 1\nraise RuntimeError('the data are cursed')")
    project.write("dsd")
    done = glocal_run(project, "dkm", "dsd")
    assert done.returncode == 1
    assert "RuntimeError: the data are cursed" in done.stdout
    (failed,) = project.runs("dkm")
    assert "the data are cursed" in (failed / "traceback.txt").read_text()
    partial = nbformat.read(failed / "dkm.ipynb", 4)
    assert any(o.output_type == "error" for cell in partial.cells for o in cell.get("outputs", []))
    assert json.loads((failed / "result.json").read_text())["status"] == "failed"
    (succeeded,) = project.runs("dsd")
    assert json.loads((succeeded / "result.json").read_text())["status"] == "done"
    # the same command again runs only what failed
    again = glocal_run(project, "dkm", "dsd")
    assert "dsd done already" in again.stderr
    assert project.executed() == ["dkm", "dsd", "dkm"] or project.executed() == ["dsd", "dkm", "dkm"]


def test_a_completed_batch_starts_anew(project):
    project.write("dkm")
    assert glocal_run(project, "dkm").returncode == 0
    assert glocal_run(project, "dkm").returncode == 0
    assert project.executed() == ["dkm", "dkm"]


def test_kill_in_the_middle_of_a_batch_then_resume(project, wait_for):
    gate = project.root / "gate"
    gate.touch()
    blocked = f"import pathlib, time\nwhile pathlib.Path({str(gate)!r}).exists(): time.sleep(0.1)"
    project.write("dkm")
    project.write("dsd", blocked)
    project.write("wide_cnn")
    process = start(project, "dkm", "dsd", "wide_cnn", "--jobs", "1")
    wait_for(lambda: project.executed() == ["dkm", "dsd"])
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(project.leftovers()) == 1  # the half-written run of dsd, under a temporary name
    assert [len(project.runs(slug)) for slug in ("dkm", "dsd", "wide_cnn")] == [1, 0, 0]
    wait_for(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family), 20)
    gate.unlink()
    done = glocal_run(project, "dkm", "dsd", "wide_cnn", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    assert "dkm done already" in done.stderr
    assert project.executed() == ["dkm", "dsd", "dsd", "wide_cnn"]  # dkm was not run again
    assert project.leftovers() == []
    assert [len(project.runs(slug)) for slug in ("dkm", "dsd", "wide_cnn")] == [1, 1, 1]


def test_ctrl_c_ends_the_workers_and_keeps_what_is_finished(project, wait_for):
    project.write("dkm")
    project.write("dsd", "import time\ntime.sleep(600)")
    process = start(project, "dkm", "dsd", "--jobs", "1")
    wait_for(lambda: project.executed() == ["dkm", "dsd"])
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "same command again" in output
    assert "Traceback" not in output
    assert project.leftovers() == []
    assert len(project.runs("dkm")) == 1
    wait_for(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family), 20)


def test_an_interrupt_that_got_lost_still_ends_the_batch(project):
    project.write("dkm")
    job = Job(project.root, "dkm", {}, "small", project.root / "runs", "batch")
    before = signal.getsignal(signal.SIGINT)
    with remembered_interrupts() as is_interrupted:
        assert not is_interrupted()
        with contextlib.suppress(KeyboardInterrupt):  # as a destructor would
            signal.raise_signal(signal.SIGINT)
        assert is_interrupted()
        with pytest.raises(KeyboardInterrupt):
            collect({Future(): job}, lambda outcome: None, lambda cells: None, is_interrupted)
    assert signal.getsignal(signal.SIGINT) is before


def test_rehearsal_takes_the_full_scale_file_and_the_cpu(project):
    project.write("dkm", "print(scale, rate, device)", full="rate: 0.25\ndevice: cuda\n")
    done = glocal_run(project, "dkm", "--full", "--rehearse", "--json")
    (outcome,) = json.loads(done.stdout)
    notebook = nbformat.read(f"{outcome['folder']}/dkm.ipynb", 4)
    printed = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
    assert "rehearsal 0.25 cpu" in printed
    assert outcome["verdict"]["claims"][0]["status"] == "inconclusive"  # a rehearsal is never judged


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "there is no chapter 'nope'"),
        (["dkn"], "did you mean 'dkm'"),
        (["fedld"], "planned but not written yet"),
        ([], "name at least one chapter"),
        (["dkm", "-p", "sede=1"], "did you mean 'seed'"),
        (["dkm", "-p", "seed=x"], "must be int"),
        (["dkm", "-p", "device=cuda"], "torch finds no GPU here"),
        (["dkm", "--rehearse"], "--full --rehearse"),
        (["dkm", "--executor", "cloud"], "pool, slurm or local"),
        (["dkm", "--out", "occupied/runs"], "cannot write to"),
    ],
)
def test_bad_input_gets_one_clear_message(project, arguments, message):
    project.write("dkm")
    (project.root / "occupied").write_text("a file where a folder is wanted")
    done = glocal_run(project, *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert project.executed() == []


def test_submitit_local_executor(project):
    project.write("dkm")
    done = glocal_run(project, "dkm", "--executor", "local", "--json")
    assert done.returncode == 0, done.stderr
    (outcome,) = json.loads(done.stdout)
    assert outcome["status"] == "done"
    assert len(project.runs("dkm")) == 1
