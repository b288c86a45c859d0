"""Files that commands write: judged before anything is measured, and an old one lost at no time."""

import json
import os
import resource
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from benchmarks import compile as compile_kernels
from benchmarks import grid, saving, tune
from benchmarks.cpu import contenders as cpu
from benchmarks.cpu.command import app
from benchmarks.gpu import __main__ as gpu
from relay_hf.cli.benchmark import contenders, timed_model
from relay_hf.cli.output_file import check_writable, write_output

from .command import Ran, interrupted_at

OLD = "an older result"
SHAPE = ("--rows", 3, "--prefix", 20, "--own", 5, "--new", 2, "--policy", "always")
COMMANDS = {
    "relay-hf": (Ran, ("bench", *SHAPE)),
    "benchmarks.cpu": (partial(Ran, app=app), ("smoke", "--policy", "always", "--contenders", "stock,relay-cold")),
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """The model that is built on the spot computes next to nothing."""
    monkeypatch.setattr(timed_model, "SMALL_MODEL", timed_model.ModelShape(64, 128, 2, 4, 4, 256))


@pytest.fixture(params=COMMANDS)
def run(request):
    command, arguments = COMMANDS[request.param]
    return partial(command, *arguments)


def nothing_runs(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a model was built")

    monkeypatch.setattr(timed_model.ModelShape, "build", refuse)


WRONG = {
    "no such folder": ("absent/result", "No such file or directory: {folder}/absent"),
    "under a file": ("file/result", "Not a directory: {folder}/file"),
    "a folder": ("folder", "irectory"),
}


@pytest.fixture(params=WRONG)
def wrong_place(request, tmp_path):
    """A place where nothing can be written, and what is said of it; nothing may change in the folder."""
    (tmp_path / "file").write_text(OLD)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    name, what = WRONG[request.param]
    yield tmp_path / name, what.format(folder=tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == OLD


def test_a_place_where_nothing_can_be_written_is_refused_before_anything_runs(run, wrong_place, monkeypatch):
    nothing_runs(monkeypatch)
    path, what = wrong_place
    assert what in run("--output", path).refuses("--output")


def test_a_picture_too(wrong_place, monkeypatch):
    nothing_runs(monkeypatch)
    path, what = wrong_place
    assert what in Ran("smoke", "--plot", f"{path}.png", app=app).refuses("--plot")


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (grid.main, ("--json",)),
        (saving.main, ("--json",)),
        (compile_kernels.main, ("--json",)),
        (gpu.main, ("--dry-run", "--out")),
        (tune.main, ("--dry-run", "--write", "--table")),
    ],
    ids=("grid", "saving", "compile", "gpu", "tune"),
)
def test_the_other_benchmarks_refuse_it_too(main, arguments, wrong_place, monkeypatch, capsys):
    path, what = wrong_place
    monkeypatch.setattr("sys.argv", ["benchmark", *arguments, str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"argument {arguments[-1]}: " in said
    assert what in said
    assert "Give a file in a folder that exists and that you may write to" in said


@pytest.fixture
def locked():
    """A folder, and a file in another, that this process may not write to."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sub").mkdir()
        (folder / "file").write_text(OLD)
        for path, mode in ((folder, 0o777), (folder / "sub", 0o555), (folder / "file", 0o444)):
            path.chmod(mode)
        user = os.geteuid()
        if user == 0:  # who may write everywhere
            os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(user)


def test_what_may_not_be_written_to_is_known_beforehand(locked):
    with pytest.raises(PermissionError) as folder:
        check_writable(locked / "sub" / "result")
    assert folder.value.filename == str(locked / "sub")
    with pytest.raises(PermissionError) as file:
        check_writable(locked / "file")
    assert file.value.filename == str(locked / "file")
    check_writable(locked / "result")
    assert sorted(path.name for path in locked.iterdir()) == ["file", "sub"]


@pytest.mark.parametrize("old", [None, OLD], ids=["no old result", "an old result"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_fails_leaves_no_file_and_the_old_result_as_it_was(run, old, error, tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    if old is not None:
        path.write_text(old)

    def fail(*arguments):
        raise error

    monkeypatch.setattr(timed_model.ModelShape, "build", fail)
    if error is KeyboardInterrupt:
        assert run("--output", path).code == 130
    else:
        with pytest.raises(error):
            run("--output", path)
    assert [each.read_text() for each in tmp_path.iterdir()] == ([] if old is None else [old])


def test_a_write_that_fails_leaves_the_old_result_as_it_was(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(OLD)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            write_output(path, lambda to: to.write_text("x" * 1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [each.read_text() for each in tmp_path.iterdir()] == [OLD]


def test_what_is_no_file_is_written_to_and_not_replaced():
    read, write = os.pipe()
    path = Path(f"/dev/fd/{write}")
    check_writable(path)
    write_output(path, lambda to: to.write_text("a result"))
    assert os.read(read, 100) == b"a result"
    os.close(read)
    os.close(write)


def interrupted(monkeypatch, call):
    """Ctrl-C in the stock contender's call of that number."""
    stock = contenders.CONTENDERS["stock"]
    at = replace(stock, prepare=interrupted_at(call, stock.prepare))
    for known in (contenders.CONTENDERS, cpu.CONTENDERS):
        monkeypatch.setitem(known, "stock", at)


def test_after_an_interrupt_the_finished_rounds_are_written_and_shown(run, tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    path.write_text(OLD)
    interrupted(monkeypatch, 3)
    done = run("--rounds", 5, "--output", path)
    assert done.code == 130
    assert "Interrupted: the result has the rounds that were finished" in done.error
    assert "│ relay-cold " in done.out
    found = json.loads(path.read_text())
    assert found["interrupted"] is True
    (record,) = found["workloads"]
    assert {len(each["seconds"]) for each in record["contenders"]} == {2}
    assert all(each["same_tokens"] for each in record["contenders"])


def test_after_an_interrupt_json_is_printed_too(run, monkeypatch):
    interrupted(monkeypatch, 2)
    done = run("--json")
    assert done.code == 130
    assert json.loads(done.out)["interrupted"] is True


def test_an_interrupt_in_the_first_round_of_a_workload_keeps_the_workloads_before_it(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    interrupted(monkeypatch, 2)
    files = ("--output", path, "--plot", tmp_path / "plot.png")
    done = Ran("smoke", "smoke-tree", "--rounds", 1, "--contenders", "stock,relay-cold", *files, app=app)
    assert done.code == 130
    found = json.loads(path.read_text())
    assert (found["interrupted"], [record["name"] for record in found["workloads"]]) == (True, ["smoke"])
    assert (tmp_path / "plot.png").is_file()


def test_a_run_that_was_not_interrupted_says_so(run):
    assert run("--rounds", 1, "--json").json["interrupted"] is False


def test_saving_keeps_the_rounds_that_were_finished(tmp_path, monkeypatch):
    path = tmp_path / "saving.json"
    monkeypatch.setattr(saving, "a_round", interrupted_at(2, saving.a_round))
    monkeypatch.setattr("sys.argv", ["benchmarks.saving", "--mib", "1", "--rounds", "3", "--json", str(path)])
    assert saving.main() == 130
    found = json.loads(path.read_text())
    assert found["interrupted"] is True
    assert {len(seconds) for seconds in found["seconds"].values()} == {1}


def test_the_grid_keeps_the_cells_that_were_finished(tmp_path, monkeypatch):
    path = tmp_path / "grid.json"
    monkeypatch.setattr(grid, "C1_MODEL", timed_model.ModelShape(64, 128, 2, 4, 4, 256))
    monkeypatch.setattr(grid, "run_cell", interrupted_at(2, grid.run_cell))
    monkeypatch.setattr("sys.argv", ["grid", "--prefixes", "8", "--cell-seconds", "0", "--json", str(path)])
    assert grid.main() == 130
    found = json.loads(path.read_text())
    assert (found["interrupted"], len(found["grid"])) == (True, 1)
