"""What comes out of an engine's pod becomes a kit only through here: read with suspicion, and written anew.

The archive is sent by `tar` inside a container, whose bytes prove nothing about their form. So headers are read by hand
with every length bounded, only plain files with plain names are taken, and the kit is an archive of our own making.
"""

import hashlib
import posixpath
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from streamway.errors import KitRefusedError

_BLOCK = 512
_COPY_BYTES = 1 << 20
_MAX_NAME_BYTES = 1024
_MAX_FILES = 100_000
_REGULAR, _FOLDER, _LONG_NAME = (b"0", b"\0"), b"5", b"L"
_KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}


@dataclass(frozen=True, kw_only=True)
class PackedKit:
    """A kit on disk.

    Args:
        path: Where.
        sha256: Of its bytes, as lower-case hex.
        size_bytes: Its length.
        file_count: How many files are in it.
    """

    path: Path
    sha256: str
    size_bytes: int
    file_count: int


def pack_kit(pieces: Iterable[bytes], path: Path, *, max_bytes: int) -> PackedKit:
    """Turn the output of `tar` into a kit.

    Args:
        pieces: The archive as it comes, in the format of GNU tar or plain ustar.
        path: Where the kit is written.
        max_bytes: Most bytes that the kit may have.

    Raises:
        KitRefusedError: it is too large, broken, or holds anything but plain files with plain names.
    """
    source, count = _Source(pieces, max_bytes), 0
    with path.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as kit:
        for entry in _entries(source):
            count += 1
            # What a header claims is judged before a byte of it is written.
            if count > _MAX_FILES or file.tell() + entry.size > max_bytes:
                raise _too_large(max_bytes)
            kit.addfile(entry, _Body(source, entry.size))
            source.skip(-entry.size % _BLOCK)
    size = path.stat().st_size
    if size > max_bytes:
        raise _too_large(max_bytes)
    return PackedKit(path=path, sha256=_digest(path), size_bytes=size, file_count=count)


def check_name(name: str) -> str:
    """Return a name that stays below the folder it is unpacked in.

    Raises:
        KitRefusedError: it does not.
    """
    plain = name.removeprefix("./")
    parts = plain.split("/")
    if (
        not plain
        or plain != posixpath.normpath(plain)
        or name.startswith("/")
        or ".." in parts
        or not plain.isprintable()
    ):
        raise KitRefusedError(f"The engine's cache has a file named {name!r}, which is no plain name.")
    return plain


class _Source:
    """Bytes as they come, of which no more are taken than allowed."""

    def __init__(self, pieces: Iterable[bytes], max_bytes: int) -> None:
        self._pieces = iter(pieces)
        self._held = b""
        self._max_bytes = max_bytes
        # Headers and padding come on top of the files' bytes.
        self._left = max_bytes + _MAX_FILES * 2 * _BLOCK

    def some(self, most: int) -> bytes:
        """Return at least one byte, or nothing at the end."""
        while not self._held:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._left -= len(piece)
            if self._left < 0:
                raise _too_large(self._max_bytes)
            self._held = piece
        taken, self._held = self._held[:most], self._held[most:]
        return taken

    def exactly(self, count: int) -> bytes:
        taken = b""
        while len(taken) < count:
            more = self.some(count - len(taken))
            if not more:
                raise KitRefusedError(f"The engine's cache came incomplete: {count - len(taken)} bytes are missing.")
            taken += more
        return taken

    def skip(self, count: int) -> None:
        while count:
            count -= len(self.exactly(min(count, _COPY_BYTES)))

    def drain(self) -> None:
        """Read to the end, so that how the command ended is known."""
        while self.some(_COPY_BYTES):
            pass


class _Body:
    """One file's bytes, as tarfile reads them."""

    def __init__(self, source: _Source, size: int) -> None:
        self._source = source
        self._left = size

    def read(self, size: int = _COPY_BYTES, /) -> bytes:
        data = self._source.exactly(min(size, self._left))
        self._left -= len(data)
        return data


def _entries(source: _Source) -> Iterator[tarfile.TarInfo]:
    """Read headers; the caller takes each file's bytes before it asks for the next."""
    long_name = ""
    seen: set[str] = set()
    while True:
        header = source.exactly(_BLOCK)
        if not any(header):
            source.drain()
            return
        kind, size = _read_header(header)
        if kind == _LONG_NAME:
            long_name = _read_long_name(source, size)
            continue
        name, long_name = long_name or _short_name(header), ""
        if kind == _FOLDER:
            continue
        if kind not in _REGULAR:
            what = _KINDS.get(kind, f"of the kind {kind!r}")
            raise KitRefusedError(f"The engine's cache has {name!r}, which is {what} and no plain file.")
        entry = tarfile.TarInfo(check_name(name))
        if entry.name in seen:
            raise KitRefusedError(f"The engine's cache has {entry.name!r} twice.")
        seen.add(entry.name)
        entry.size, entry.mtime = size, _number(header[136:148], "time")
        entry.mode = 0o755 if _number(header[100:108], "mode") & 0o100 else 0o644
        yield entry


def _read_header(header: bytes) -> tuple[bytes, int]:
    told = _number(header[148:156], "checksum")
    found = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if told != found or header[257:262] != b"ustar":
        raise KitRefusedError("The engine's cache did not come as a tar archive.")
    return header[156:157], _number(header[124:136], "size")


def _read_long_name(source: _Source, size: int) -> str:
    if not 0 < size <= _MAX_NAME_BYTES:
        raise KitRefusedError(f"The engine's cache has a name of {size} bytes, expected at most {_MAX_NAME_BYTES}.")
    name = source.exactly(size)
    source.skip(-size % _BLOCK)
    return _text(name)


def _short_name(header: bytes) -> str:
    name = _text(header[:100])
    # GNU's own format has other things where ustar has the name's beginning.
    prefix = _text(header[345:500]) if header[257:265] == b"ustar\x0000" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")


def _number(field: bytes, what: str) -> int:
    text = field.replace(b"\0", b" ").strip()
    if field[0] & 0x80 or not all(digit in b"01234567" for digit in text):
        raise KitRefusedError(f"The engine's cache did not come as a tar archive: a {what} in it is {field!r}.")
    return int(text or b"0", 8)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _too_large(max_bytes: int) -> KitRefusedError:
    return KitRefusedError(
        f"The engine's cache is larger than {max_bytes / 2**20:.0f} MiB, the most that a kit may have.",
        next_step="Nothing needs to be done: engines start without a kit, and take longer.",
    )
