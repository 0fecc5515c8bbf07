"""What the Hub says is understood, and each way in which it says no is a message worth reading."""

import socket
from typing import Any

import pytest

from streamway.errors import AccessDeniedError, HubError, ModelNotFoundError, RevisionNotFoundError
from streamway.hub.repository import read_repository
from streamway.storage import Patience


def test_a_model_is_described_at_the_commit_that_its_revision_means(hub: Any) -> None:
    first = hub.model("org/described")
    second = hub.push("org/described", {"tokenizer.json": b"{}"})
    described = read_repository("org/described", "main")
    assert (described.model_id, described.revision, described.commit_sha) == ("org/described", "main", second)
    assert described.licence == "apache-2.0"
    assert not described.gated and described.scan_done and described.scan_issues == ()
    files = {file.path: file for file in described.files}
    assert set(files) == {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    assert len(files["model.safetensors"].sha256) == 64 and files["config.json"].sha256 == ""
    assert len(files["config.json"].blob_id) == 40
    assert read_repository("org/described", first).commit_sha == first


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (b"---\nlicense: mit\n---\n", "mit"),
        (b"---\nlicense: other\nlicense_name: llama3.1\n---\n", "llama3.1"),
        (b"---\nlicense: other\n---\n", "other"),
        (b"---\nlicense:\n- mit\n- apache-2.0\n---\n", "mit"),
        (b"no card", "unknown"),
    ],
)
def test_the_licence_is_read_from_the_card(hub: Any, card: bytes, licence: str) -> None:
    hub.push("org/licensed", {"README.md": card, "config.json": b"{}"})
    assert read_repository("org/licensed", "main").licence == licence


def test_an_unknown_model_is_named(hub: Any) -> None:
    with pytest.raises(ModelNotFoundError, match="org/nowhere is not on") as caught:
        read_repository("org/nowhere", "main")
    assert hub.url in caught.value.next_step and "case-sensitive" in caught.value.next_step


@pytest.mark.parametrize("model_id", ["a/b/c", "", "org/na me", "../etc"])
def test_what_is_no_id_is_said_before_anybody_is_asked(hub: Any, model_id: str) -> None:
    with pytest.raises(ModelNotFoundError, match="not a model id"):
        read_repository(model_id, "main")
    assert hub.count() == 0


def test_an_unknown_revision_is_named(hub: Any) -> None:
    hub.model("org/known")
    with pytest.raises(RevisionNotFoundError, match="org/known has no revision 'v9'"):
        read_repository("org/known", "v9")


def test_a_gated_model_needs_a_token_of_somebody_who_was_admitted(hub: Any) -> None:
    hub.model("org/gated")
    hub.settle("org/gated", gated="manual")
    hub.tokens({"hf_admitted": ["org/gated"], "hf_stranger": []})
    for token, words in ((None, "no token"), ("hf_stranger", "the given token")):
        with pytest.raises(AccessDeniedError, match=f"org/gated is gated, and {words}") as caught:
            read_repository("org/gated", "main", token=token)
        assert f"{hub.url}/org/gated" in caught.value.next_step
    assert read_repository("org/gated", "main", token="hf_admitted").gated


def test_the_token_of_the_environment_is_used(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.model("org/gated-too")
    hub.settle("org/gated-too", gated="auto")
    hub.tokens({"hf_admitted": ["org/*"]})
    monkeypatch.setenv("HF_TOKEN", "hf_admitted")
    assert read_repository("org/gated-too", "main").gated


def test_a_private_model_cannot_be_told_from_one_that_is_not_there(hub: Any) -> None:
    hub.model("org/private")
    hub.settle("org/private", private=True)
    hub.tokens({"hf_owner": ["org/private"], "hf_other": []})
    for token in (None, "hf_other"):
        with pytest.raises(ModelNotFoundError, match="or it is private"):
            read_repository("org/private", "main", token=token)
    assert read_repository("org/private", "main", token="hf_owner").private


def test_a_token_that_the_hub_does_not_know_is_said_and_never_shown(hub: Any) -> None:
    hub.model("org/public")
    with pytest.raises(AccessDeniedError, match="does not know the given token") as caught:
        read_repository("org/public", "main", token="hf_wrongsecret")
    assert "hf_wrongsecret" not in str(caught.value)


def test_a_renamed_model_is_not_served_under_its_old_name(hub: Any) -> None:
    hub.model("org/new-name")
    hub.settle("org/old-name", moved_to="org/new-name")
    with pytest.raises(HubError, match="org/old-name is now called org/new-name") as caught:
        read_repository("org/old-name", "main")
    assert "org/new-name" in caught.value.next_step


def test_a_disabled_model_is_said_to_be(hub: Any) -> None:
    hub.model("org/taken-down")
    hub.settle("org/taken-down", disabled=True)
    with pytest.raises(HubError, match="disabled"):
        read_repository("org/taken-down", "main")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_hub_is_asked_again(hub: Any, hurried: Patience, status: int) -> None:
    hub.model("org/busy")
    hub.arm("status", status=status, path="/api/models/*", times=2, headers={"Retry-After": "0"})
    assert read_repository("org/busy", "main", patience=hurried).model_id == "org/busy"
    assert not hub.armed()


def test_a_hub_that_stays_busy_is_given_up(hub: Any, hurried: Patience) -> None:
    hub.model("org/busy")
    hub.arm("status", status=503, path="/api/models/*", times=100)
    with pytest.raises(HubError, match="503; tried 4 times"):
        read_repository("org/busy", "main", patience=hurried)


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch, hurried: Patience) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(HubError, match="cannot be reached") as caught:
        read_repository("org/name", "main", patience=hurried)
    assert address in str(caught.value) and "HF_ENDPOINT" in caught.value.next_step
