"""Where bytes are: a local path or gs://BUCKET/KEY, told apart and taken apart in one place.

Every name that comes from a model repository passes through here before it becomes a path, so a hostile one
(`../x`, `/etc/x`, a NUL, a backslash) is refused before anything is opened.
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from streamway.errors import StorageError

GS_SCHEME = "gs://"
MAX_KEY_BYTES = 1024
"""https://cloud.google.com/storage/docs/objects#naming"""

_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_OTHER_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class ObjectAddress:
    """A bucket, and a key in it; the key may be empty or a prefix."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{GS_SCHEME}{self.bucket}/{self.key}"


def is_gs(uri: str) -> bool:
    """Tell whether a URI names Cloud Storage."""
    return uri.startswith(GS_SCHEME)


def parse_gs(uri: str) -> ObjectAddress:
    """Take a gs:// URI apart.

    Raises:
        StorageError: it is not one, or its bucket or key cannot exist.
    """
    if not is_gs(uri):
        raise StorageError(f"{uri!r} is not a gs:// address.", next_step="Write it as gs://BUCKET/PREFIX.")
    bucket, _, key = uri.removeprefix(GS_SCHEME).partition("/")
    if not _BUCKET_NAME.fullmatch(bucket):
        raise StorageError(
            f"{uri!r}: {bucket!r} is not a bucket name; expected 3 to 222 of a-z, 0-9, '-', '_' and '.'.",
            next_step="Correct the bucket in the address.",
        )
    _refuse_control_characters(key, uri)
    if len(key.encode()) > MAX_KEY_BYTES:
        raise StorageError(
            f"{uri!r}: the object name is {len(key.encode())} bytes long, at most {MAX_KEY_BYTES} are allowed.",
            next_step="Choose a shorter prefix.",
        )
    return ObjectAddress(bucket, key)


def bucket_of(uri: str) -> str:
    """Return the bucket of a gs:// URI, and "" for a local path, which has none."""
    return parse_gs(uri).bucket if is_gs(uri) else ""


def local_path(uri: str) -> Path:
    """Return the path that a local URI means.

    Raises:
        StorageError: the URI has another scheme, or cannot be a path.
    """
    if uri.startswith("file://"):
        uri = uri.removeprefix("file://")
    if not uri or _OTHER_SCHEME.match(uri):
        raise StorageError(
            f"{uri!r} is neither a local path nor a gs:// address.",
            next_step="Use a path on this machine or gs://BUCKET/PREFIX.",
        )
    if "\0" in uri:
        raise StorageError(f"{uri!r} has a NUL byte in it, which no path has.")
    return Path(uri)


def check_relative(path: str) -> str:
    """Return a path inside a model, or refuse it.

    Raises:
        StorageError: it is empty or absolute, climbs out, or has characters that no such path needs.
    """
    parts = path.split("/")
    drive = len(parts[0]) == 2 and parts[0][1] == ":"
    if not path or path.startswith("/") or "\\" in path or drive or any(p in ("", ".", "..") for p in parts):
        raise StorageError(
            f"{path!r} is not a path inside a model: expected names joined by '/', without '..', backslashes or a "
            "leading '/'.",
            next_step="Do not use this repository; its file names are hostile or broken.",
        )
    _refuse_control_characters(path, path)
    return str(PurePosixPath(path))


def join(uri: str, *parts: str) -> str:
    """Append relative paths to a URI, with single slashes; refuses parts that would leave it."""
    base = uri.rstrip("/") if uri.strip("/") else "/"
    tail = [check_relative(part.rstrip("/")) for part in parts]
    keep_slash = bool(parts) and parts[-1].endswith("/")
    return "/".join([base.rstrip("/"), *tail]) + ("/" if keep_slash else "")


def parent(uri: str) -> tuple[str, str]:
    """Split a URI into its folder and its last name."""
    folder, _, name = uri.rstrip("/").rpartition("/")
    return folder or ("/" if uri.startswith("/") else "."), name


def _refuse_control_characters(text: str, subject: str) -> None:
    # JSON can spell half a character (a lone surrogate), which no file system and no protocol can.
    if any(ord(character) < 32 or ord(character) == 127 or "\ud800" <= character <= "\udfff" for character in text):
        raise StorageError(f"{subject!r} has control characters in it, which no object name should have.")
