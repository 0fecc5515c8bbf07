"""Application default credentials for the sandbox, so that no step knows that it is in one.

`google.auth.default()` reads the file that GOOGLE_APPLICATION_CREDENTIALS names. A service account's key would send
google-auth to Google's IAM service after every refresh, and a user's credentials are refreshed at Google's token
endpoint whatever the file says; a user's credentials with a token that has not expired are used as they are, and
nothing outside this machine is asked (tried with google-auth 2.62.2).
"""

import json
import secrets
from pathlib import Path

FILE_NAME = "credentials.json"
_NEVER_EXPIRES = "2999-12-31T23:59:59Z"


def write_credentials(folder: Path) -> Path:
    """Write the sandbox's credentials, or keep those that are there.

    Args:
        folder: Where the file goes.

    Returns:
        The file, for GOOGLE_APPLICATION_CREDENTIALS.
    """
    path = folder / FILE_NAME
    if path.exists():
        return path
    value = {
        "type": "authorized_user",
        "client_id": "streamway-sandbox",
        "client_secret": "of no use outside the sandbox",
        "refresh_token": "of no use outside the sandbox",
        "token": f"sandbox-{secrets.token_urlsafe(24)}",
        "expiry": _NEVER_EXPIRES,
        "universe_domain": "googleapis.com",
    }
    folder.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps(value, indent=1) + "\n")
    return path


def read_token(path: Path) -> str:
    """Return the access token that clients with these credentials send."""
    return str(json.loads(path.read_text())["token"])
