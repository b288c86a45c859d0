"""Files of prefixes on the Hub: the Hub's own client, against a server on this machine."""

import threading

import pytest
from huggingface_hub import constants

from relay_hf import PrefixFileError, RelayError
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model

from .common import IDS, PREFIX, ROWS, assert_served, patched
from .hub import Hub, Repository


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The server, which the client takes for the Hub; its cache is empty."""
    with Hub() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server
        server.shutdown()


@pytest.fixture
def kept():
    model = patched()
    model.relay.warm(IDS, pin=True)
    return model


@pytest.mark.parametrize("mmap", [False, True])
def test_another_process_has_the_prefixes_from_the_hub(hub, kept, mmap):
    kept.relay.push_to_hub("me/bot", token="hf_secret")
    assert hub.repositories["me/bot"].private is True
    assert hub.tokens == {"Bearer hf_secret"}
    worker = patched()
    (found,) = worker.relay.load_from_hub("me/bot", token="hf_secret", mmap=mmap)
    assert found.pinned
    assert_served(worker, generate(tiny_model("llama"), ROWS))


def test_a_commit_names_its_file_for_good(hub, kept):
    first = kept.relay.push_to_hub("me/bot", filename="a/p.safetensors", token="t").oid
    kept.relay.clear()
    kept.relay.warm(IDS[: PREFIX // 2])
    kept.relay.push_to_hub("me/bot", filename="a/p.safetensors", token="t")
    lengths = {}
    for revision in (first, None):
        (found,) = patched().relay.load_from_hub("me/bot", "a/p.safetensors", revision=revision, token="t")
        lengths[revision] = len(found)
    assert lengths == {first: PREFIX, None: PREFIX // 2}


def test_only_the_chosen_prefixes_are_pushed(hub, kept):
    other = kept.relay.warm(IDS.flip(0))
    kept.relay.push_to_hub("me/bot", [other], token="t")
    (found,) = patched().relay.load_from_hub("me/bot", token="t")
    assert found.ids.equal(IDS.flip(0))


def test_a_public_repository_needs_an_explicit_word(hub, kept):
    hub.repositories["me/bot"] = Repository(private=False)
    with pytest.raises(ValueError, match=r"holds prompts; me/bot is public. .* pass private=False if everybody"):
        kept.relay.push_to_hub("me/bot", token="t")
    assert hub.repositories["me/bot"].files == {}
    kept.relay.push_to_hub("me/bot", private=False, token="t")
    assert len(patched().relay.load_from_hub("me/bot", token="t")) == 1
    kept.relay.push_to_hub("me/new", private=False, token="t")
    assert hub.repositories["me/new"].private is False


def test_where_nothing_is_kept_no_repository_is_made(hub):
    with pytest.raises(RelayError, match="nothing to save"):
        patched().relay.push_to_hub("me/bot", token="t")
    assert hub.repositories == {}


def test_a_file_of_the_hub_is_judged_like_any_other(hub, kept):
    kept.relay.push_to_hub("me/bot", token="t")
    with pytest.raises(PrefixFileError, match="other weights"):
        patched(seed=1).relay.load_from_hub("me/bot", token="t")
    commits, model = hub.repositories["me/bot"].files, patched()
    commits["cut"] = {name: content[:-1] for name, content in commits["main"].items()}
    with pytest.raises(PrefixFileError, match="is damaged"):
        model.relay.load_from_hub("me/bot", revision="cut", token="t")
    assert not model.relay.prefixes
