"""What may lie at a path, what it may be called, and what befalls a file while it is read."""

import errno
import os
from pathlib import Path

import pytest

from relay_hf import PrefixFileError
from relay_hf.prefix import PrefixFile, file_reader
from relay_hf.prefix import file as prefix_file
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model

from .common import IDS, PREFIX, ROWS, assert_served, patched, saved

NOT_UTF8 = os.fsdecode(b"\xff\n")


@pytest.fixture
def kept():
    model = patched()
    model.relay.warm(IDS)
    return model


@pytest.mark.parametrize("name", ["x" * 255, NOT_UTF8], ids=["as long as may be", "not UTF-8"])
@pytest.mark.parametrize("mmap", [False, True])
def test_any_name_that_a_file_may_have(tmp_path, name, mmap):
    saved(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    model = patched()
    model.relay.load(tmp_path / name, mmap=mmap)
    assert_served(model, generate(tiny_model("llama"), ROWS))


def test_an_error_is_a_line_whatever_the_file_is_called(tmp_path):
    (tmp_path / NOT_UTF8).write_bytes(b"")
    with pytest.raises(PrefixFileError, match=r"\\udcff\\n is damaged, or no safetensors file") as caught:
        patched().relay.load(tmp_path / NOT_UTF8)
    assert str(caught.value).isprintable()


def test_a_name_that_no_file_can_have(kept):
    for act in (kept.relay.save, kept.relay.load):
        with pytest.raises(ValueError, match=r"must be that of a file; a\\x00b can't be one \(embedded null byte"):
            act("a\0b")


def test_what_is_no_file_is_not_replaced(tmp_path, kept):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("pipe", "null"):
        with pytest.raises(OSError, match=f"must be that of a file; {tmp_path / name} is none"):
            kept.relay.save(tmp_path / name)
    assert (tmp_path / "pipe").is_fifo()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_link_that_leads_in_a_circle(tmp_path, kept):
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    for act in (kept.relay.save, kept.relay.load):
        with pytest.raises(OSError, match=f"leads in a circle; remove it, .*{tmp_path / 'one'}") as caught:
            act(tmp_path / "one")
        assert caught.value.errno == errno.ELOOP


def test_a_link_to_nothing_leads_to_the_file_that_is_written(tmp_path, kept):
    (tmp_path / "link").symlink_to("file")
    kept.relay.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").is_file()


def meanwhile(monkeypatch, what):
    """Do something between the read of a file's header and that of its tensors."""
    read = prefix_file.PrefixFile.read

    def read_then(self, *given):
        what()
        return read(self, *given)

    monkeypatch.setattr(prefix_file.PrefixFile, "read", read_then)


@pytest.mark.parametrize("left", [0, 100, -1])
def test_a_file_that_is_cut_short_while_it_is_read(tmp_path, monkeypatch, left):
    saved(path := tmp_path / "p")
    meanwhile(monkeypatch, lambda: os.truncate(path, left % path.stat().st_size))
    model = patched()
    with pytest.raises(PrefixFileError, match=f"{path} is damaged, .* ends behind the file's end"):
        model.relay.load(path)
    assert not model.relay.prefixes


@pytest.mark.parametrize("mmap", [False, True])
def test_a_file_that_another_replaces_while_it_is_read_is_read_to_its_end(tmp_path, monkeypatch, mmap):
    expected = generate(saved(tmp_path / "p"), ROWS)
    saved(tmp_path / "other", seed=1)
    meanwhile(monkeypatch, lambda: os.replace(tmp_path / "other", tmp_path / "p"))
    model = patched()
    model.relay.load(tmp_path / "p", mmap=mmap)
    assert_served(model, expected)


def while_it_is_opened(monkeypatch, what):
    """Do something between this library's look at a file's header and that of safetensors."""
    judge = file_reader.safe_open

    def judge_then(*given, **options):
        what()
        return judge(*given, **options)

    monkeypatch.setattr(file_reader, "safe_open", judge_then)


@pytest.mark.parametrize("mmap", [False, True])
def test_a_file_that_another_replaces_while_it_is_opened_is_read_as_it_was(tmp_path, monkeypatch, mmap):
    expected = generate(saved(tmp_path / "p"), ROWS)
    saved(tmp_path / "other", seed=1)
    while_it_is_opened(monkeypatch, lambda: os.replace(tmp_path / "other", tmp_path / "p"))
    model = patched()
    model.relay.load(tmp_path / "p", mmap=mmap)
    assert_served(model, expected)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("tokens", [PREFIX, PREFIX + 9, PREFIX - 9])
def test_where_an_open_file_has_no_path_of_its_own_another_is_not_mixed_with_it(tmp_path, monkeypatch, mmap, tokens):
    model = saved(tmp_path / "p")
    model.relay.clear()
    model.relay.warm((ROWS["input_ids"][1, :1] + 1).repeat(tokens))
    model.relay.save(tmp_path / "other")
    monkeypatch.setattr(file_reader, "_reopened", lambda file, path: path)
    while_it_is_opened(monkeypatch, lambda: os.replace(tmp_path / "other", tmp_path / "p"))
    model.relay.clear()
    with pytest.raises(PrefixFileError, match=f"{tmp_path / 'p'} is damaged"):
        model.relay.load(tmp_path / "p", mmap=mmap)
    assert not model.relay.prefixes


@pytest.mark.parametrize("left", [0, 5, 100, -1])
def test_a_file_that_is_cut_short_while_it_is_opened(tmp_path, monkeypatch, left):
    saved(path := tmp_path / "p")
    while_it_is_opened(monkeypatch, lambda: os.truncate(path, left % path.stat().st_size))
    with pytest.raises(PrefixFileError, match=f"{path} is damaged, or no safetensors file"):
        PrefixFile(path)


def test_an_error_names_the_file_where_it_can_not_be_opened_once_more(tmp_path, monkeypatch):
    """Such as where no descriptor is left: safetensors names the path that it was given, and calls the file absent."""
    saved(tmp_path / "p")
    monkeypatch.setattr(file_reader, "_reopened", lambda file, path: path.with_name("absent"))
    with pytest.raises(OSError, match="absent") as caught:
        PrefixFile(tmp_path / "p")
    assert caught.value.filename == str(tmp_path / "p")


def test_a_read_that_fails_names_the_file():
    """`/proc/self/mem` is a regular file whose reads fail."""
    path = Path("/proc/self/mem")
    with pytest.raises(OSError, match=str(path)) as caught:
        patched().relay.load(path)
    assert caught.value.filename == str(path)


def test_no_file_stays_open(tmp_path):
    """Known by their paths: a collector may close what an earlier test left open at any time."""
    saved(tmp_path / "p")
    (tmp_path / "damaged").write_bytes((tmp_path / "p").read_bytes()[:-1])
    with pytest.raises(PrefixFileError):
        patched().relay.load(tmp_path / "damaged")
    with pytest.raises(PrefixFileError):
        patched(seed=1).relay.load(tmp_path / "p")
    patched().relay.load(tmp_path / "p")
    still_open = {os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")}
    assert not [path for path in still_open if Path(path).is_relative_to(tmp_path.resolve())]
