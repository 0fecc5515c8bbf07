"""The zip container of torch checkpoints, read by ranges and believed in nothing.

torch writes a zip whose members are stored, not compressed, so that a storage is a byte range of the file. Only that
shape is read here; whatever differs (compressed or encrypted members, entries that overlap, sizes that disagree, names
that leave the archive) is refused with its name. Only the central directory and the local headers of the members in
use are read, so an archive of any size in a bucket costs a few small requests.

Source of the layout: PKWARE's APPNOTE 6.3, sections 4.3 and 4.5.3 (zip64); torch's own reader trusts the local header
for where a member's data starts, so this one reads it too and holds it against the directory.
"""

import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from streamway.errors import CheckpointError
from streamway.storage.segments import ByteReader
from streamway.weights.wording import show_name

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_DIRECTORY_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")

_MAX_DIRECTORY_BYTES = 64 * 1024 * 1024
_MAX_RECORDS = 500_000
_TAIL_BYTES = 64 * 1024
_HEADER_READ_BYTES = 512
_REMOTE_REQUESTS = 16
_ENCRYPTED, _DESCRIPTOR = 0x1, 0x8
_FULL32, _FULL16 = 0xFFFFFFFF, 0xFFFF


@dataclass(frozen=True, slots=True)
class Record:
    """One member, as the central directory has it."""

    name: str
    header_offset: int
    size_bytes: int
    flags: int


@dataclass(frozen=True, slots=True)
class DataRange:
    """Where a member's bytes are in the file."""

    offset: int
    size_bytes: int


class ZipRecords:
    """The members of a torch archive, by their name below the archive's one root folder.

    Args:
        reader: The file.

    Raises:
        CheckpointError: it is not a zip as torch writes it.
    """

    def __init__(self, reader: ByteReader) -> None:
        self._reader = reader
        self._subject = reader.uri
        directory_offset, directory, count = self._read_directory()
        self._directory_offset = directory_offset
        records = self._parse_directory(directory, count)
        self._ends = self._check_order(records)
        self.root, self.records = self._below_root(records)

    def __contains__(self, name: str) -> bool:
        return name in self.records

    def read(self, name: str, limit: int) -> bytes:
        """Return a small member whole.

        Raises:
            CheckpointError: it is longer than `limit` bytes, or its header disagrees.
        """
        if self.records[name].size_bytes > limit:
            raise self.refuse(
                f"{show_name(name)} has {self.records[name].size_bytes:,} bytes, expected at most {limit}"
            )
        (found,) = self.locate([name]).values()
        return self._reader.read(found.offset, found.size_bytes)

    def locate(self, names: Iterable[str]) -> dict[str, DataRange]:
        """Find where members' bytes are, from their local headers.

        Raises:
            CheckpointError: a local header disagrees with the central directory.
        """
        wanted = sorted((self.records[name] for name in names), key=lambda record: record.header_offset)
        windows = list(self._windows(wanted))
        if len(windows) > 1 and "://" in self._reader.uri:
            with ThreadPoolExecutor(_REMOTE_REQUESTS) as pool:
                located = list(pool.map(self._locate_window, windows))
        else:
            located = [self._locate_window(window) for window in windows]
        below = len(self.root) + 1
        return {record.name[below:]: place for group in located for record, place in group}

    def refuse(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self._subject}: {what}.",
            next_step="Download the file again; if it is the same, ask the model's owner for safetensors.",
        )

    # Central directory

    def _read_directory(self) -> tuple[int, bytes, int]:
        size = self._reader.size_bytes
        tail_start = max(0, size - _TAIL_BYTES)
        tail = self._reader.read(tail_start, size - tail_start)
        if len(tail) < _END.size or tail[-_END.size : -_END.size + 4] != b"PK\5\6":
            raise self.refuse("it starts as a zip archive, and does not end as one that torch writes; it is cut off")
        _, disk, _, _, count, length, offset, comment = _END.unpack(tail[-_END.size :])
        if comment:
            raise self.refuse("its zip directory announces a comment that is not there")
        end = size - _END.size
        if disk not in (0, _FULL16):
            raise self.refuse("it is one volume of a zip archive in several")
        locator_at = len(tail) - _END.size - _END64_LOCATOR.size
        if locator_at >= 0 and tail[locator_at : locator_at + 4] == b"PK\6\7":
            end, count, length, offset = self._read_end64(tail_start, tail, locator_at)
        elif _FULL32 in (length, offset) or count == _FULL16:
            raise self.refuse("its zip directory says zip64 and has no zip64 record")
        return offset, self._directory_bytes(tail_start, tail, offset, length, end, count), count

    def _read_end64(self, tail_start: int, tail: bytes, locator_at: int) -> tuple[int, int, int, int]:
        _, _, end_offset, _ = _END64_LOCATOR.unpack_from(tail, locator_at)
        at = end_offset - tail_start
        if at + _END64.size != locator_at or at < 0:
            raise self.refuse("its zip64 record is not where its locator says")
        signature, record_size, _, _, disk, _, _, count, length, offset = _END64.unpack_from(tail, at)
        if signature != b"PK\6\6" or record_size != _END64.size - 12 or disk:
            raise self.refuse("its zip64 record is malformed")
        return end_offset, count, length, offset

    def _directory_bytes(self, tail_start: int, tail: bytes, offset: int, length: int, end: int, count: int) -> bytes:
        if offset + length != end:
            raise self.refuse(f"its zip directory is at {offset:,} with {length:,} bytes, expected to end at {end:,}")
        if length > _MAX_DIRECTORY_BYTES or count > _MAX_RECORDS or count * _DIRECTORY_ENTRY.size > length:
            raise self.refuse(f"its zip directory announces {count:,} entries in {length:,} bytes")
        if offset >= tail_start:
            return tail[offset - tail_start : offset - tail_start + length]
        return self._reader.read(offset, length)

    def _parse_directory(self, directory: bytes, count: int) -> list[Record]:
        records: list[Record] = []
        at = 0
        for _ in range(count):
            if at + _DIRECTORY_ENTRY.size > len(directory):
                raise self.refuse("its zip directory is shorter than its number of entries")
            record, at = self._parse_entry(directory, at)
            records.append(record)
        if at != len(directory):
            raise self.refuse(f"its zip directory has {len(directory) - at:,} bytes that belong to no entry")
        return records

    def _parse_entry(self, directory: bytes, at: int) -> tuple[Record, int]:
        fields = _DIRECTORY_ENTRY.unpack_from(directory, at)
        signature, flags, method = fields[0], fields[3], fields[4]
        packed, size, name_length, extra_length, comment_length = fields[8:13]
        disk, header_offset = fields[13], fields[16]
        name_at = at + _DIRECTORY_ENTRY.size
        extra_at = name_at + name_length
        after = extra_at + extra_length + comment_length
        if signature != b"PK\1\2" or after > len(directory):
            raise self.refuse("its zip directory is malformed")
        name = self._check_name(directory[name_at:extra_at])
        packed, size, header_offset = self._widen(
            name, directory[extra_at : extra_at + extra_length], packed, size, header_offset
        )
        if flags & _ENCRYPTED:
            raise self.refuse(f"its member {show_name(name)} is encrypted")
        if method != 0 or packed != size:
            raise self.refuse(
                f"its member {show_name(name)} is compressed (method {method}, {packed:,} bytes for {size:,}), and "
                "torch stores members as they are"
            )
        if disk not in (0, _FULL16):
            raise self.refuse(f"its member {show_name(name)} is on another volume")
        return Record(name, header_offset, size, flags), after

    def _check_name(self, raw: bytes) -> str:
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.refuse(f"a member's name is not UTF-8: {show_name(repr(raw))}") from error
        parts = name.split("/")
        if not name or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
            raise self.refuse(f"a member's name leaves the archive or is empty: {show_name(name)}")
        return name

    def _widen(self, name: str, extra: bytes, packed: int, size: int, header_offset: int) -> tuple[int, int, int]:
        """Replace what is full in 32 bits by the zip64 extra field's values, which come in a fixed order."""
        values = [size, packed, header_offset]
        if _FULL32 not in values:
            return packed, size, header_offset
        wide = self._zip64_field(name, extra)
        for index, value in enumerate(values):
            if value == _FULL32:
                if len(wide) < 8:
                    raise self.refuse(f"its member {show_name(name)} has a zip64 field that is too short")
                values[index], wide = int.from_bytes(wide[:8], "little"), wide[8:]
        return values[1], values[0], values[2]

    def _zip64_field(self, name: str, extra: bytes) -> bytes:
        at = 0
        while at + 4 <= len(extra):
            kind, length = struct.unpack_from("<2H", extra, at)
            if kind == 1:
                return extra[at + 4 : at + 4 + length]
            at += 4 + length
        raise self.refuse(f"its member {show_name(name)} says zip64 and has no zip64 field")

    # Order and names

    def _check_order(self, records: list[Record]) -> dict[int, int]:
        """Hold every entry against the next one; return where each one must end, by its header's offset."""
        ordered = sorted(records, key=lambda record: record.header_offset)
        ends: dict[int, int] = {}
        for record, following in zip(ordered, [*ordered[1:], None], strict=True):
            end = following.header_offset if following else self._directory_offset
            if record.header_offset + _LOCAL_HEADER.size + len(record.name.encode()) + record.size_bytes > end:
                other = f"member {show_name(following.name)}" if following else "the directory"
                raise self.refuse(f"its member {show_name(record.name)} overlaps {other}")
            ends[record.header_offset] = end
        return ends

    def _below_root(self, records: list[Record]) -> tuple[str, dict[str, Record]]:
        roots = {record.name.partition("/")[0] for record in records}
        if len(roots) != 1:
            raise self.refuse(f"its members are not in one folder, as torch's are, but in {len(roots)}")
        (root,) = roots
        found: dict[str, Record] = {}
        for record in records:
            name = record.name.removeprefix(root).removeprefix("/")
            if name in found:
                raise self.refuse(f"it has two members called {show_name(record.name)}")
            found[name] = record
        return root, found

    # Local headers

    def _windows(self, records: list[Record]) -> Iterable[list[Record]]:
        """Group records whose local headers lie close together, so that one read serves them."""
        group: list[Record] = []
        for record in records:
            if group and record.header_offset - group[0].header_offset > _TAIL_BYTES:
                yield group
                group = []
            group.append(record)
        if group:
            yield group

    def _locate_window(self, group: list[Record]) -> list[tuple[Record, DataRange]]:
        start = group[0].header_offset
        last = group[-1]
        longest = max(_HEADER_READ_BYTES, _LOCAL_HEADER.size + len(last.name.encode()))
        stop = min(last.header_offset + longest, self._ends[last.header_offset])
        window = self._reader.read(start, stop - start)
        return [(record, self._check_local(record, window, record.header_offset - start)) for record in group]

    def _check_local(self, record: Record, window: bytes, at: int) -> DataRange:
        subject = f"the header of its member {show_name(record.name)}"
        fields = _LOCAL_HEADER.unpack_from(window, at)
        signature, flags, method, packed, size, name_length, extra_length = (
            fields[0], fields[2], fields[3], fields[7], fields[8], fields[9], fields[10]
        )  # fmt: skip
        if signature != b"PK\3\4" or method != 0 or (flags ^ record.flags) & (_ENCRYPTED | _DESCRIPTOR):
            raise self.refuse(f"{subject} disagrees with the directory")
        name_at = at + _LOCAL_HEADER.size
        if window[name_at : name_at + name_length] != record.name.encode():
            raise self.refuse(f"{subject} has another name than the directory")
        told = not flags & _DESCRIPTOR and _FULL32 not in (size, packed)
        if told and (size, packed) != (record.size_bytes, record.size_bytes):
            raise self.refuse(f"{subject} says {size:,} bytes, the directory {record.size_bytes:,}")
        offset = record.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if offset + record.size_bytes > self._ends[record.header_offset]:
            raise self.refuse(f"{subject} pushes its data over the next member")
        return DataRange(offset, record.size_bytes)
