"""What the Hub says about a model at one commit, asked once, before a byte of it is moved.

The real client (huggingface_hub) asks, so that names, tokens and error codes mean what they mean everywhere; every
refusal becomes a message that says what to do.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub import errors as hub_errors

from streamway.errors import (
    AccessDeniedError,
    HubError,
    ModelNotFoundError,
    RevisionNotFoundError,
    StreamwayError,
    TransferError,
)
from streamway.storage import check_relative
from streamway.storage.http import RETRIED, Patience, Persistence, RetryableError, wait_told

log = logging.getLogger("streamway.hub")

DEFAULT_ENDPOINT = "https://huggingface.co"
_ASKING = Patience(attempts=5)
"""Somebody waits for the first answer, and nothing is lost when it does not come."""
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """One file of a commit.

    Args:
        path: In the repository.
        size_bytes: Its length.
        sha256: Where the file is in large file storage; "" otherwise.
        blob_id: Git's id of what is in the repository: of the file itself where `sha256` is "".
    """

    path: str
    size_bytes: int
    sha256: str
    blob_id: str

    @property
    def etag(self) -> str:
        """What the Hub gives as the file's entity tag."""
        return self.sha256 or self.blob_id


@dataclass(frozen=True, kw_only=True)
class Commit:
    """One commit of a model at one Hub.

    Args:
        endpoint: Address of the Hub.
        model_id: As the Hub writes it.
        commit_sha: 40 hex digits.
    """

    endpoint: str
    model_id: str
    commit_sha: str


@dataclass(frozen=True, kw_only=True)
class Repository(Commit):
    """A model at one commit, and what the Hub says about it.

    Args:
        endpoint: Address of the Hub.
        model_id: As the Hub writes it.
        commit_sha: What the revision means now.
        revision: What was asked for.
        licence: From the model card; the name that goes with "other"; or "unknown".
        gated: Whether access must be asked for.
        private: Whether others see it.
        scan_done: Whether the Hub's scanners have finished.
        scan_issues: (path, level) of each file they complain about.
        files: In order of path.
    """

    revision: str
    licence: str
    gated: bool
    private: bool
    scan_done: bool
    scan_issues: tuple[tuple[str, str], ...]
    files: tuple[HubFile, ...]

    @property
    def page(self) -> str:
        """Where a person reads about it."""
        return f"{self.endpoint}/{self.model_id}"


def hub_endpoint() -> str:
    """Return the address of the Hub that the environment names now."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or DEFAULT_ENDPOINT


def hub_token(token: str | None) -> str | None:
    """Return the token to use: the one that was passed, or the environment's."""
    return token or os.environ.get("HF_TOKEN") or None


def read_repository(
    model_id: str, revision: str, *, token: str | None = None, patience: Patience | None = None
) -> Repository:
    """Ask the Hub about a model, and whether this token may read it.

    Raises:
        ModelNotFoundError: there is no such model, or it is private and the token does not open it.
        RevisionNotFoundError: it has no such branch, tag or commit.
        AccessDeniedError: it is gated, or the token is not valid.
        HubError: it was renamed or disabled, or the Hub cannot be reached.
    """
    endpoint = hub_endpoint()
    if not revision.strip():
        raise RevisionNotFoundError(
            f"The revision of {model_id} is {revision!r}, expected a branch, a tag or a commit.",
            next_step="Write main for the newest commit.",
        )
    api = huggingface_hub.HfApi(endpoint=endpoint, token=hub_token(token) or False)
    patience = patience or _ASKING
    ask = Asking(endpoint, model_id, revision, with_token=bool(hub_token(token)), patience=patience)
    info = ask(
        lambda: api.model_info(
            model_id, revision=revision, files_metadata=True, securityStatus=True, timeout=patience.stall_seconds
        )
    )
    if info.id != model_id:
        raise HubError(
            f"{model_id} is now called {info.id} on {endpoint}.",
            next_step=f"Set the model id to {info.id}; ids are case-sensitive.",
        )
    repository = _repository(info, endpoint, revision)
    if repository.gated:
        ask(lambda: api.auth_check(model_id))
    return repository


def _repository(info: Any, endpoint: str, revision: str) -> Repository:
    security = info.security_repo_status or {}
    return Repository(
        endpoint=endpoint,
        model_id=info.id,
        revision=revision,
        commit_sha=info.sha,
        licence=_licence(info),
        gated=bool(info.gated),
        private=bool(info.private),
        scan_done=bool(security.get("scansDone", False)),
        scan_issues=tuple((str(i.get("path")), str(i.get("level"))) for i in security.get("filesWithIssues") or ()),
        files=tuple(sorted((_file(sibling) for sibling in info.siblings or ()), key=lambda file: file.path)),
    )


def _file(sibling: Any) -> HubFile:
    return HubFile(
        path=check_relative(sibling.rfilename),
        size_bytes=int(sibling.size or 0),
        sha256=sibling.lfs.sha256 if sibling.lfs else "",
        blob_id=sibling.blob_id or "",
    )


def _licence(info: Any) -> str:
    card = info.card_data or {}
    found = card.get("license") or next(
        (tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")), ""
    )
    if isinstance(found, list):
        found = found[0] if found else ""
    if found == "other":
        found = card.get("license_name") or "other"
    return str(found or "unknown")


class Asking:
    """Puts a question to the Hub, again where that may help, and words its refusals."""

    def __init__(self, endpoint: str, model_id: str, revision: str, *, with_token: bool, patience: Patience) -> None:
        self._endpoint = endpoint
        self._model_id = model_id
        self._revision = revision
        self._with_token = with_token
        self._patience = patience

    def __call__(self, question: Callable[[], _Answer]) -> _Answer:
        persistence = Persistence(f"{self._endpoint}/{self._model_id}", self._patience)
        while True:
            try:
                return self._ask(question)
            except RetryableError as retryable:
                self._wait(persistence, retryable)

    def _wait(self, persistence: Persistence, retryable: RetryableError) -> None:
        try:
            persistence.failed(retryable)
        except TransferError as error:
            raise HubError(
                error.problem,
                next_step=f"Check the way from here to {self._endpoint} (HF_ENDPOINT, proxies), then run again.",
            ) from error

    def _ask(self, question: Callable[[], _Answer]) -> _Answer:
        try:
            return question()
        except hub_errors.HFValidationError as error:
            raise ModelNotFoundError(
                f"{self._model_id!r} is not a model id: {error}.", next_step="Write it as `org/name`."
            ) from error
        except hub_errors.HfHubHTTPError as error:
            status = error.response.status_code
            if status in RETRIED:
                raise RetryableError(
                    f"the Hub answers {status}", wait_seconds=wait_told(error.response.headers)
                ) from error
            raise self._refusal(error, status) from error
        except hub_errors.HTTPError as error:
            raise RetryableError(f"the Hub cannot be reached ({type(error).__name__}: {error})") from error
        except ValueError as error:
            raise RetryableError(f"the Hub's answer cannot be read ({error})") from error
        except hub_errors.OfflineModeIsEnabled as error:
            raise HubError(
                "HF_HUB_OFFLINE is set, so the Hub must not be asked.", next_step="Unset HF_HUB_OFFLINE."
            ) from error

    def _refusal(self, error: hub_errors.HfHubHTTPError, status: int) -> StreamwayError:
        page = f"{self._endpoint}/{self._model_id}"
        lock = "the given token does not open it" if self._with_token else "no token was given"
        if isinstance(error, hub_errors.GatedRepoError):
            return AccessDeniedError(
                f"{self._model_id} is gated, and {lock}.",
                next_step=f"Accept its conditions on {page}, then give a token of that account (HF_TOKEN, or the "
                "Secret Manager name in the configuration).",
            )
        if isinstance(error, hub_errors.RevisionNotFoundError):
            return RevisionNotFoundError(
                f"{self._model_id} has no revision {self._revision!r}.",
                next_step=f"Choose a branch, a tag or a commit from {page}/tree/main.",
            )
        if isinstance(error, hub_errors.DisabledRepoError):
            return HubError(f"{self._model_id} was disabled by the Hub.", next_step=f"Read why on {page}.")
        if status == 401 and self._with_token and "credentials" in (error.server_message or "").lower():
            return AccessDeniedError(
                f"The Hub does not know the given token (asked for {self._model_id}).",
                next_step=f"Make a new one on {self._endpoint}/settings/tokens; it may have expired or been revoked.",
            )
        if isinstance(error, hub_errors.RepositoryNotFoundError):
            return ModelNotFoundError(
                f"{self._model_id} is not on {self._endpoint}, or it is private and {lock}.",
                next_step=f"Check the id on {page}; ids are case-sensitive. For a private model give a token.",
            )
        return HubError(
            f"{page}: the Hub answers {status}: {error.server_message or error}.",
            next_step="Read the answer; look at https://status.huggingface.co.",
        )
