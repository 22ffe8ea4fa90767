"""References that are nowhere: said at once, and nobody waits for a network that is not there."""

from __future__ import annotations

import http.server
import socket
import threading

import pytest

from vlmkit import weights
from vlmkit.embedders import load_encoder, load_text_encoder
from vlmkit.errors import VlmkitError
from vlmkit.init_from import find_saved
from vlmkit.llm import pretrained
from vlmkit.weights import reachable_weights, resolve_weights


@pytest.fixture
def lookups(monkeypatch, tmp_path):
    """Hosts that were looked up in a network that is not there; no pauses, nothing downloaded before."""
    asked = []

    def refuse(host, *rest, **named):
        asked.append(host)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(weights, "_PAUSE", 0)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    return asked


LOADERS = {
    "text encoder": lambda given: load_text_encoder(given),
    "encoder": lambda given: load_encoder(f"clip:{given}"),
    "our ViT": lambda given: load_encoder(f"vit:{given}"),
    "language model": lambda given: pretrained(given, "float32"),
    "init_from": find_saved,
}


@pytest.mark.parametrize("what", LOADERS)
def test_a_hub_that_cannot_be_reached_is_asked_twice(lookups, what):
    tried = r"https?://\S+/nope/\S+ cannot be reached \(no network here; asked 2 times\)"
    says = rf"^\w+ 'nope': no such folder, and {tried}; check the name"
    with pytest.raises(VlmkitError, match=says) as raised:
        LOADERS[what]("nope")
    assert len(lookups) == 2
    assert "\n" not in str(raised.value) and str(raised.value).count("'nope'") == 1


@pytest.mark.parametrize("what", LOADERS)
@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("./typo", "no such folder; give a folder"),
        ("../typo", "no such folder; give a folder"),
        ("~/no/typo", "no such folder; give a folder"),
        ("runs/tiny/typo", "no such folder; give a folder"),
        ("two words", "no such folder; give a folder"),
        ("runs\\typo", "no such folder; give a folder"),
    ],
)
def test_what_can_only_be_a_path_is_not_looked_for_in_a_network(lookups, what, reference, says):
    with pytest.raises(VlmkitError, match=says) as raised:
        LOADERS[what](reference)
    assert lookups == [] and str(raised.value).count(repr(reference)) == 1


@pytest.mark.parametrize("what", LOADERS)
@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("runs/else", "no such folder in 'runs', and http"),
        ("runs/tinny", r"no such folder in 'runs' \(did you mean 'runs/tiny'\?\), and http"),
    ],
)
def test_what_may_be_a_path_or_a_model_of_the_hub_is_both_until_the_hub_was_asked(
    lookups, what, reference, says
):
    with pytest.raises(VlmkitError, match=f"{says}.* cannot be reached"):
        LOADERS[what](reference)
    assert len(lookups) == 2


def test_a_downloaded_model_is_one_beside_a_folder_of_its_owners_name(lookups, tmp_path):
    for name in ("runs/here", "owner/here"):
        snapshot = tmp_path / "cache" / f"models--{name.replace('/', '--')}" / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text("abc")
        assert resolve_weights(name) == reachable_weights(name) == name
    assert lookups == []
    with pytest.raises(VlmkitError, match="cannot be reached"):
        reachable_weights("owner/elsewhere")


def test_a_hub_that_answers_is_asked_once(monkeypatch, tmp_path):
    """Where a folder cannot have been meant, what the hub has not is transformers' to say."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    asked = []

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *words):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.hf_hub_url", lambda reference, name: f"{url}/{reference}/{name}")
        assert reachable_weights("owner/model") == "owner/model"
        with pytest.raises(
            VlmkitError, match=r"did you mean 'runs/tiny'\?\), and no model of that name at .*404"
        ):
            reachable_weights("runs/tinny")
        server.shutdown()
        thread.join()
    assert asked == ["/owner/model/config.json", "/runs/tinny/config.json"]
