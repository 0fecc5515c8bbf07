"""The newest commit of a branch, asked for often and therefore cheaply: one small answer, or none at all."""

from dataclasses import dataclass
from urllib.parse import quote

import huggingface_hub
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from streamway.hub.repository import Asking, hub_endpoint, hub_token
from streamway.storage import Patience

_ASK_SECONDS = 30.0
# Whoever asks every few minutes need not insist; it asks again anyway.
_PATIENCE = Patience(attempts=3)


@dataclass(frozen=True, kw_only=True)
class Newest:
    """What a branch or tag means now.

    Args:
        commit_sha: The commit, as 40 hex digits.
        etag: The answer's entity tag, for the next question; empty where the Hub gave none.
    """

    commit_sha: str
    etag: str = ""


def find_newest(model_id: str, revision: str, *, token: str | None = None, known: Newest | None = None) -> Newest:
    """Ask the Hub for the commit of a revision; an answer that has not changed is not sent again.

    Args:
        model_id: Hugging Face model id.
        revision: Branch or tag.
        token: The Hub's token; the environment's by default.
        known: What was found before.

    Raises:
        ModelNotFoundError, RevisionNotFoundError, AccessDeniedError, HubError: as in `pull_model`.
    """
    endpoint = hub_endpoint()
    token = hub_token(token)
    headers = build_hf_headers(token=token or False)
    if known and known.etag:
        headers["If-None-Match"] = known.etag
    address = f"{endpoint}/api/models/{model_id}/revision/{quote(revision, safe='')}"

    def question() -> Newest:
        response = huggingface_hub.get_session().get(
            address, headers=headers, params={"expand": "sha"}, timeout=_ASK_SECONDS
        )
        if known and response.status_code == 304:
            return known
        hf_raise_for_status(response)
        return Newest(commit_sha=response.json()["sha"], etag=response.headers.get("ETag", ""))

    ask: Asking = Asking(endpoint, model_id, revision, with_token=bool(token), patience=_PATIENCE)
    return ask(question)
