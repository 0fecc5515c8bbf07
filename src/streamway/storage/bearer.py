"""Google's access tokens, apart from the requests that carry them, so that local work need not load their library.

It is imported when the first endpoint that wants a token is made; google-auth and what it needs take 15 MiB and 0.1 s.
"""

import threading

import google.auth
import google.auth.credentials
import google.auth.exceptions
import google.auth.transport.requests

from streamway.errors import StorageAccessError

_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"


class Bearer:
    """A Google access token, refreshed before it expires; nothing where an emulator is addressed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._credentials: google.auth.credentials.Credentials | None = None

    def headers(self, *, renew: bool = False) -> dict[str, str]:
        with self._lock:
            try:
                if self._credentials is None:
                    self._credentials, _ = google.auth.default(scopes=[_SCOPE])
                if renew or not self._credentials.valid:
                    self._credentials.refresh(google.auth.transport.requests.Request())
            except google.auth.exceptions.GoogleAuthError as error:
                raise StorageAccessError(
                    f"There are no usable Google credentials: {error}",
                    next_step="Run `gcloud auth application-default login`, or give the worker a service account.",
                ) from error
            return {"Authorization": f"Bearer {self._credentials.token}"}
