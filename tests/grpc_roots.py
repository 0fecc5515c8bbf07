"""One certificate authority for all caches of a session: gRPC reads the roots that a process trusts once."""

import functools
import shutil
import tempfile
from pathlib import Path

from streamway.sandbox.caches_tls import make_identity

_AUTHORITY = "authority.pem"


@functools.cache
def _authority() -> bytes:
    folder = Path(tempfile.mkdtemp(prefix="authority-"))
    try:
        make_identity(folder)
        return (folder / _AUTHORITY).read_bytes()
    finally:
        shutil.rmtree(folder)


def share_authority(state_path: Path) -> None:
    """Let the caches of this state, which are not started yet, be trusted by who has trusted others before."""
    folder = state_path / "caches"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _AUTHORITY
    path.touch(mode=0o600)
    path.write_bytes(_authority())
