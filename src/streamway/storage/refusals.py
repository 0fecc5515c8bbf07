"""What a disk refuses, as an error that names the path: a bare OSError would end a command in a traceback."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from streamway.errors import StorageError


@contextlib.contextmanager
def named_refusals(path: Path, what: str) -> Iterator[None]:
    """Say which path the disk refused, and what was to be done with it, such as "written"."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StorageError(
            f"{path} cannot be {what}: {error.strerror}.",
            next_step="Free disk space, or stage in a bucket (gs://), which needs no disk at all."
            if full
            else "Correct the path or its permissions.",
        ) from error
