"""The token is read from Secret Manager by its name, and no message ever shows it."""

import base64
from pathlib import Path
from typing import Any

import pytest
import requests

from streamway import hub as hub_room
from streamway.errors import AccessDeniedError, SettingsError


class Recorded:
    """Google's answer, prepared, and what was asked."""

    def __init__(self, status: int, body: bytes) -> None:
        self.asked: list[str] = []
        self._answer = requests.Response()
        self._answer.status_code = status
        self._answer._content = body

    def get(self, url: str, *, timeout: float) -> Any:
        self.asked.append(url)
        return self._answer


def holding(text: bytes) -> Recorded:
    encoded = base64.b64encode(text).decode()
    return Recorded(200, f'{{"name": "x", "payload": {{"data": "{encoded}"}}}}'.encode())


def test_no_name_is_no_token() -> None:
    assert hub_room.read_token("") is None


@pytest.mark.parametrize(
    ("name", "url"),
    [
        (
            "projects/p/secrets/hf",
            "https://secretmanager.googleapis.com/v1/projects/p/secrets/hf/versions/latest:access",
        ),
        (
            "projects/p/secrets/hf/versions/3",
            "https://secretmanager.googleapis.com/v1/projects/p/secrets/hf/versions/3:access",
        ),
        (
            "projects/p/locations/europe-west4/secrets/hf",
            "https://secretmanager.europe-west4.rep.googleapis.com/v1/projects/p/locations/europe-west4/secrets/hf"
            "/versions/latest:access",
        ),
    ],
)
def test_a_secret_is_read_by_its_resource_name(name: str, url: str) -> None:
    session = holding(b"hf_token\n")
    assert hub_room.read_token(name, session=session) == "hf_token"
    assert session.asked == [url]


def test_a_token_in_place_of_a_name_is_refused_and_not_shown() -> None:
    with pytest.raises(SettingsError, match="not a resource name") as caught:
        hub_room.read_token("hf_averysecrettoken")
    assert "averysecret" not in str(caught.value)


def test_a_refusal_says_what_to_grant() -> None:
    session = Recorded(403, b'{"error": {"message": "Permission denied on secret"}}')
    with pytest.raises(AccessDeniedError, match="403: Permission denied on secret") as caught:
        hub_room.read_token("projects/p/secrets/hf", session=session)
    assert "secretAccessor" in caught.value.next_step


@pytest.mark.parametrize("body", [b"", b"{}", b'{"payload": {"data": "###"}}', b'{"payload": {"data": "/w=="}}'])
def test_a_secret_that_is_no_text_is_said_to_be(body: bytes) -> None:
    with pytest.raises(AccessDeniedError, match="no text"):
        hub_room.read_token("projects/p/secrets/hf", session=Recorded(200, body))


def test_a_worker_without_credentials_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(AccessDeniedError, match="credentials") as caught:
        hub_room.read_token("projects/p/secrets/hf")
    assert caught.value.next_step
