"""The Hub's token from Secret Manager, read where it is needed, so that no parameter or compiled file holds it."""

import base64
import re

import google.auth
import google.auth.exceptions
import google.auth.transport.requests

from streamway.errors import AccessDeniedError, SettingsError

_NAME = re.compile(r"projects/[^/]+/(?:locations/[^/]+/)?secrets/[^/]+(?P<version>/versions/[^/]+)?")
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_SECONDS = 30.0


def read_token(secret_name: str) -> str | None:
    """Return the secret that a Secret Manager resource name means; None for "".

    Args:
        secret_name: `projects/P/secrets/S` or `projects/P/secrets/S/versions/V`; the latest version by default.

    Raises:
        SettingsError: it is not such a name.
        AccessDeniedError: it cannot be read.
    """
    if not secret_name:
        return None
    match = _NAME.fullmatch(secret_name)
    if not match:
        raise SettingsError(
            f"{secret_name!r} is not the resource name of a secret.",
            next_step="Write it as projects/PROJECT/secrets/NAME; never put the token itself there.",
        )
    name = secret_name if match["version"] else f"{secret_name}/versions/latest"
    url = f"https://secretmanager.googleapis.com/v1/{name}:access"
    try:
        credentials, _ = google.auth.default(scopes=[_SCOPE])
        with google.auth.transport.requests.AuthorizedSession(credentials) as session:
            answer = session.get(url, timeout=_SECONDS)
    except (google.auth.exceptions.GoogleAuthError, OSError) as error:
        raise AccessDeniedError(
            f"{name} cannot be read: {type(error).__name__}: {error}",
            next_step="Check the credentials of this worker and its way to secretmanager.googleapis.com.",
        ) from error
    if answer.status_code != 200:
        raise AccessDeniedError(
            f"{name} cannot be read: Secret Manager answers {answer.status_code}: {_reason(answer)}",
            next_step="Grant this account roles/secretmanager.secretAccessor on the secret.",
        )
    return base64.b64decode(answer.json()["payload"]["data"]).decode().strip()


def _reason(answer: "google.auth.transport.requests.requests.Response") -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return str(answer.text[:200])
