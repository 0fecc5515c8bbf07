"""The Hub's token from Secret Manager, read where it is needed, so that no parameter or compiled file holds it.

Google's credentials are imported when a secret is named: most models are public, and need none.
"""

import base64
import re
from typing import Any, Protocol

from streamway.errors import AccessDeniedError, SettingsError

_NAME = re.compile(r"projects/[^/]+/(?:locations/[^/]+/)?secrets/[^/]+(?P<version>/versions/[^/]+)?")
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_SECONDS = 30.0


class Session(Protocol):
    """What asks Google, with credentials: a requests.Session or google.auth's AuthorizedSession."""

    def get(self, url: str, *, timeout: float) -> Any:
        """Return the answer, as requests gives it."""


def read_token(secret_name: str, *, session: Session | None = None) -> str | None:
    """Return the secret that a Secret Manager resource name means; None for "".

    Args:
        secret_name: `projects/P/secrets/S` or `projects/P/secrets/S/versions/V`; the latest version by default.
        session: Asks with credentials of its own; by default with those of the environment.

    Raises:
        SettingsError: it is not such a name.
        AccessDeniedError: it cannot be read.
    """
    if not secret_name:
        return None
    match = _NAME.fullmatch(secret_name)
    if not match:
        raise SettingsError(
            f"The name of the token's secret ({len(secret_name)} characters) is not a resource name.",
            next_step="Write it as projects/PROJECT/secrets/NAME; never put the token itself there.",
        )
    name = secret_name if match["version"] else f"{secret_name}/versions/latest"
    answer = _ask(name, session)
    if answer.status_code != 200:
        raise AccessDeniedError(
            f"{name} cannot be read: Secret Manager answers {answer.status_code}: {_reason(answer)}",
            next_step="Grant this account roles/secretmanager.secretAccessor on the secret.",
        )
    return _payload(answer, name)


def _ask(name: str, session: Session | None) -> Any:
    import google.auth
    from google.auth.exceptions import GoogleAuthError
    from google.auth.transport.requests import AuthorizedSession

    try:
        if session is None:
            credentials, _ = google.auth.default(scopes=[_SCOPE])
            session = AuthorizedSession(credentials)
        return session.get(_address(name), timeout=_SECONDS)
    except (GoogleAuthError, OSError) as error:
        raise AccessDeniedError(
            f"{name} cannot be read: {type(error).__name__}: {error}",
            next_step="Check the credentials of this worker and its way to secretmanager.googleapis.com.",
        ) from error


def _address(name: str) -> str:
    """Return where a secret is read; those of one region are served there alone."""
    region = re.search(r"/locations/([^/]+)/", name)
    host = f"secretmanager.{region[1]}.rep.googleapis.com" if region else "secretmanager.googleapis.com"
    return f"https://{host}/v1/{name}:access"


def _payload(answer: Any, name: str) -> str:
    try:
        return base64.b64decode(answer.json()["payload"]["data"], validate=True).decode().strip()
    except (ValueError, KeyError, TypeError) as error:
        raise AccessDeniedError(
            f"{name} holds no text that could be a token.", next_step="Store the token alone in it, as text."
        ) from error


def _reason(answer: Any) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return str(answer.text[:200])
