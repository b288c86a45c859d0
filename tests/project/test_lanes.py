"""The lanes: what pytest's report says, which Transformers is newer than the pins, what is wrong with an archive."""

import importlib.util
import io
import re
import sys
import tarfile
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

import relay_hf

ROOT = Path(relay_hf.__file__).parents[1]
_OVER = ("apart", "clients", "docs", "release", "site")  # environments over the first one
REPORT = """<testsuites><testsuite>
<testcase classname="tests.a" name="one"/>
<testcase classname="tests.a" name="two"><failure message="AssertionError: 1 is not 2&#10;more">trace</failure>
</testcase>
<testcase classname="tests.a" name="three"><skipped message="no"/></testcase>
<testcase classname="tests.b" name=""><error message="collection failure">trace</error></testcase>
</testsuite></testsuites>"""


def script(name):
    """A module of .ci, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # which dataclasses look up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def lane(monkeypatch):
    monkeypatch.delitem(sys.modules, "lane", raising=False)
    monkeypatch.delitem(sys.modules, "newest", raising=False)
    yield script("lane")
    sys.modules.pop("lane")


@pytest.fixture
def newest(lane, monkeypatch):
    """The script, which asks no index, installs nothing and runs nothing."""
    module = script("newest")
    monkeypatch.setattr(module, "install", lambda version: pytest.fail("it was installed"))
    monkeypatch.setattr(module, "run", lambda *arguments: pytest.fail("tests were run"))
    yield module
    sys.modules.pop("newest")


def test_a_report_is_counted_and_its_failures_have_their_reasons(lane):
    found = lane.result(1, ElementTree.fromstring(REPORT).iter("testcase"))
    assert found.counts == {"passed": 1, "failed": 2, "skipped": 1}
    assert found.failed == ("tests.a::two: AssertionError: 1 is not 2", "tests.b::: collection failure")


@pytest.mark.parametrize(
    ("served", "said"),
    [
        ("{pin}", "serves is {pin}, the latest pin: nothing more to run."),
        ("5.18.0", "serves is 5.18.0, older than the latest pin, {pin}: nothing more to run."),
    ],
)
def test_nothing_is_run_where_no_release_is_newer_than_the_pin(newest, monkeypatch, capsys, served, said):
    monkeypatch.setattr(newest, "newest", lambda: served.format(pin=newest.PIN))
    assert newest.main() == 0
    assert said.format(pin=newest.PIN) in capsys.readouterr().out


def test_an_index_that_cannot_be_asked_is_said_and_is_no_failure(newest, monkeypatch, capsys):
    def refused(*arguments):
        return newest.subprocess.CompletedProcess(
            arguments, 1, "", "WARNING: Retrying\nERROR: No matching distribution\n"
        )

    monkeypatch.setattr(newest, "pip", refused)
    assert newest.main() == 0
    assert "can't be asked for the newest Transformers" in capsys.readouterr().out


def test_a_newer_release_runs_the_core_every_type_and_the_clients_that_install_with_it(
    newest, lane, monkeypatch, capsys
):
    ran = []

    def run(python, paths, *options):
        ran.append(([*paths], options))
        return lane.Result(1, 7, 0, ("tests.models.test_models::test_type[new]: has no row",))

    complaint = "trl 1.16.0 has requirement transformers<5.25, but you have transformers 5.99.0.\n"
    monkeypatch.setattr(newest, "newest", lambda: "5.99.0")
    monkeypatch.setattr(newest, "install", lambda version: None)
    monkeypatch.setattr(newest, "pip", lambda *_: newest.subprocess.CompletedProcess((), 1, complaint, ""))
    monkeypatch.setattr(newest, "run", run)
    assert newest.main() == 1
    (paths, options), *more = ran
    assert not more
    assert {"tests/models", "tests/modes", "tests/clients/test_peft.py"} <= {*paths}
    assert "tests/clients/test_trl.py" not in paths
    assert "--all-types" in options
    said = capsys.readouterr().out
    assert f"Transformers 5.99.0, where {newest.PIN} is pinned: 7 passed, 1 failed, 0 skipped" in said
    assert f"not run: tests/clients/test_trl.py: {complaint}" in said
    assert "failed: tests.models.test_models::test_type[new]: has no row" in said


def test_a_release_that_cannot_be_installed_is_told(newest, monkeypatch, capsys):
    monkeypatch.setattr(newest, "newest", lambda: "5.99.0")
    monkeypatch.setattr(newest, "install", lambda version: "ERROR: ResolutionImpossible")
    assert newest.main() == 2
    assert "Transformers 5.99.0 is the newest, and can't be installed" in capsys.readouterr().out


def test_every_client_of_the_tests_is_known(newest):
    assert {path.name for path in (ROOT / "tests/clients").glob("test_*.py")} == {*newest.CLIENTS}


TRACKED = {"Makefile", "relay_hf/__init__.py", "relay_hf/py.typed", "tests/test_patching.py"}
IN_WHEEL = {name for name in TRACKED if name.startswith("relay_hf/")} | {
    f"relay_hf-1.0.dist-info/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
}


def wheel(folder, files):
    path = folder / "relay_hf-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in files:
            archive.writestr(name, "text of /somewhere/else")
    return path


def sdist(folder, files):
    path = folder / "relay_hf-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in files:
            member = tarfile.TarInfo(f"relay_hf-1.0/{name}")
            member.size = 4
            archive.addfile(member, io.BytesIO(b"text"))
    return path


@pytest.mark.parametrize(("make", "right"), [(wheel, IN_WHEEL), (sdist, TRACKED | {"PKG-INFO"})])
def test_an_archive_that_lacks_a_file_or_has_another_is_told(tmp_path, make, right):
    faults = script("release").faults
    assert faults(make(tmp_path, right), TRACKED, set()) == []
    archive = make(tmp_path, right - {"relay_hf/py.typed"} | {"tests/conftest.py"})
    assert faults(archive, TRACKED, set()) == [
        f"{archive.name} lacks relay_hf/py.typed",
        f"{archive.name} has tests/conftest.py, which is not one of its files that Git tracks",
    ]


def test_an_archive_that_names_a_path_of_this_machine_is_told(tmp_path):
    found = script("release").faults(wheel(tmp_path, IN_WHEEL), TRACKED, {"/somewhere/", "/nowhere/"})
    assert len(found) == len(IN_WHEEL)
    assert all(line.endswith(" of relay_hf-1.0-py3-none-any.whl names /somewhere/") for line in found)


@pytest.mark.parametrize("target", ["test", "test-all", "test-newest", "test-notebooks", "test-clients"])
def test_a_target_whose_tests_load_the_chat_model_downloads_it(target):
    (needs,) = re.findall(rf"^{target}:(.*?)(?:##|$)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert ".venv/.model" in needs.split()


@pytest.mark.parametrize("name", [*_OVER, *(path.stem for path in sorted(ROOT.glob("requirements/peers-*.txt")))])
def test_what_the_first_environment_has_is_pinned_once(name):
    """These lie over it, so that a second pin of the same version installs nothing."""
    first, over = (
        set(
            re.findall(
                r"^[^#\s]+==[^;\s]+", (ROOT / f"requirements/{each}.txt").read_text(encoding="utf-8"), re.MULTILINE
            )
        )
        for each in ("pins", name)
    )
    assert not first & over
