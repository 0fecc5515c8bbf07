"""Checkpoints as torch writes them, made byte by byte, so that the tests need no torch and can be hostile at will."""

import io
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

MAGIC = 0x1950A86A20F9469CFC6C

STORAGE_CLASSES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
    "complex64": "ComplexFloatStorage",
    "complex128": "ComplexDoubleStorage",
}
"""Types with a storage class of their own; torch writes the others as bytes with the dtype beside them."""

WIDTHS = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1,
    "bool": 1, "complex64": 8, "complex128": 16, "uint16": 2, "uint32": 4, "uint64": 8, "float8_e4m3fn": 1,
    "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1, "float4_e2m1fn_x2": 1,
}  # fmt: skip

CODES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "complex64": "C64", "uint16": "U16", "uint32": "U32",
    "uint64": "U64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ", "float8_e8m0fnu": "F8_E8M0", "float4_e2m1fn_x2": "F4",
}  # fmt: skip


@dataclass(frozen=True)
class Global:
    """A name that the pickle looks up."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """A call that the pickle makes."""

    function: Any
    arguments: tuple[Any, ...]
    state: Any = None


@dataclass(frozen=True)
class Persistent:
    """A persistent id."""

    identifier: Any


@dataclass(frozen=True)
class Raw:
    """Opcodes as they are."""

    opcodes: bytes


@dataclass(eq=False)
class Storage:
    """Elements that tensors view."""

    data: bytes
    dtype: str = "float32"
    claimed_bytes: int | None = None

    @property
    def numel(self) -> int:
        size = len(self.data) if self.claimed_bytes is None else self.claimed_bytes
        return size // (WIDTHS[self.dtype] if self.dtype in STORAGE_CLASSES else 1)


@dataclass(eq=False)
class Tensor:
    """A view of a storage."""

    storage: Storage
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    offset: int = 0
    parameter: bool = False
    buffer: bool = False
    metadata: dict[str, bool] | None = None

    @property
    def steps(self) -> tuple[int, ...]:
        return contiguous(self.shape) if self.strides is None else self.strides

    def row(self) -> bytes:
        """The elements in order, worked out one by one."""
        width = WIDTHS[self.storage.dtype]
        found = io.BytesIO()
        for index in indices(self.shape):
            at = (self.offset + sum(i * s for i, s in zip(index, self.steps, strict=True))) * width
            found.write(self.storage.data[at : at + width])
        return found.getvalue()


def tensor(data: bytes, shape: tuple[int, ...], dtype: str = "float32", **more: Any) -> Tensor:
    """A tensor with a storage of its own."""
    return Tensor(Storage(data, dtype), shape, **more)


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    steps: list[int] = []
    step = 1
    for size in reversed(shape):
        steps.insert(0, step)
        step *= max(1, size)
    return tuple(steps)


def indices(shape: Sequence[int]) -> Iterable[tuple[int, ...]]:
    if not shape:
        yield ()
        return
    for first in range(shape[0]):
        for rest in indices(shape[1:]):
            yield (first, *rest)


@dataclass
class _Archive:
    """What an object refers to while it is pickled."""

    protocol: int
    legacy: bool
    keys: dict[int, str] = field(default_factory=dict)
    storages: dict[str, Storage] = field(default_factory=dict)

    def pickle(self, value: Any) -> bytes:
        out = io.BytesIO()
        if self.protocol >= 2:
            out.write(b"\x80" + bytes([self.protocol]))
        self._write(out, value)
        out.write(b".")
        return out.getvalue()

    def _write(self, out: io.BytesIO, value: Any) -> None:
        match value:
            case None | True | False | int() | float() | str() | bytes():
                out.write(self._scalar(value))
            case dict():
                out.write(b"}(" if self.protocol else b"(d(")
                for key, item in value.items():
                    self._write(out, key)
                    self._write(out, item)
                out.write(b"u")
            case list():
                out.write(b"](" if self.protocol else b"(l(")
                for item in value:
                    self._write(out, item)
                out.write(b"e")
            case tuple():
                out.write(b"(")
                for item in value:
                    self._write(out, item)
                out.write(b"t")
            case Global():
                self._global(out, value)
            case Call():
                self._write(out, value.function)
                self._write(out, value.arguments)
                out.write(b"R")
                if value.state is not None:
                    self._write(out, value.state)
                    out.write(b"b")
            case Persistent():
                self._write(out, value.identifier)
                out.write(b"Q")
            case Raw():
                out.write(value.opcodes)
            case Tensor():
                self._write(out, self._tensor(value))

    def _scalar(self, value: Any) -> bytes:
        if value is None:
            return b"N"
        if isinstance(value, bool):
            return (b"\x88" if value else b"\x89") if self.protocol >= 2 else (b"I01\n" if value else b"I00\n")
        if isinstance(value, int):
            if self.protocol == 0:
                return b"L%dL\n" % value
            if -(2**31) <= value < 2**31:
                return b"J" + struct.pack("<i", value)
            raw = value.to_bytes(16, "little", signed=True)
            return b"\x8a\x10" + raw
        if isinstance(value, float):
            return b"G" + struct.pack(">d", value)
        if isinstance(value, bytes):
            return b"B" + struct.pack("<I", len(value)) + value
        raw = value.encode("utf-8", "surrogatepass")
        if self.protocol == 0:
            return b"V" + value.encode("raw-unicode-escape") + b"\n"
        if self.protocol >= 4 and len(raw) < 256:
            return b"\x8c" + bytes([len(raw)]) + raw
        return b"X" + struct.pack("<I", len(raw)) + raw

    def _global(self, out: io.BytesIO, value: Global) -> None:
        if self.protocol >= 4:
            self._write(out, value.module)
            self._write(out, value.name)
            out.write(b"\x93")
        else:
            out.write(f"c{value.module}\n{value.name}\n".encode())

    def _tensor(self, value: Tensor) -> Any:
        storage = value.storage
        key = self.keys.setdefault(id(storage), str(len(self.keys)))
        self.storages[key] = storage
        typed = storage.dtype in STORAGE_CLASSES
        kind = Global("torch", STORAGE_CLASSES[storage.dtype]) if typed else Global("torch.storage", "UntypedStorage")
        identifier = ("storage", kind, key, "cpu", storage.numel) + ((None,) if self.legacy else ())
        hooks = Call(Global("collections", "OrderedDict"), ())
        view = (Persistent(identifier), value.offset, value.shape, value.steps, False, hooks)
        if typed:
            more = (value.metadata,) if value.metadata else ()
            made = Call(Global("torch._utils", "_rebuild_tensor_v2"), (*view, *more))
        else:
            made = Call(Global("torch._utils", "_rebuild_tensor_v3"), (*view, Global("torch", storage.dtype)))
        if value.buffer:
            inner = (made.function, Global("torch.nn.parameter", "Buffer"), made.arguments, {"persistent": True})
            return Call(Global("torch._tensor", "_rebuild_from_type_v2"), inner)
        if value.parameter:
            return Call(Global("torch._utils", "_rebuild_parameter"), (made, True, hooks))
        return made


def pickle_bytes(value: Any, protocol: int = 2) -> bytes:
    """Pickle a value of this module's vocabulary."""
    return _Archive(protocol, legacy=False).pickle(value)


@dataclass(frozen=True)
class Member:
    """One member of a zip, with everything that can be lied about."""

    name: str
    data: bytes
    local_name: str | None = None
    local_size: int | None = None
    size: int | None = None
    packed: int | None = None
    method: int = 0
    local_method: int | None = None
    flags: int = 0x0808
    local_flags: int | None = None
    header_offset: int | None = None


def zip_bytes(
    members: Sequence[Member], *, align: int = 64, zip64: bool = True, count: int | None = None, tail: bytes = b""
) -> bytes:
    """Write a zip as torch's writer does: stored members, descriptors, padding in the local extra field."""
    out, directory = io.BytesIO(), io.BytesIO()
    for member in members:
        at = out.tell()
        _write_member(out, member, align)
        _write_entry(directory, member, at, zip64)
    start, raw = out.tell(), directory.getvalue()
    out.write(raw)
    total = len(members) if count is None else count
    if zip64:
        end = out.tell()
        out.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, total, total, len(raw), start))
        out.write(struct.pack("<4sLQL", b"PK\6\7", 0, end, 1))
        out.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))
    else:
        out.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, total, total, len(raw), start, 0))
    out.write(tail)
    return out.getvalue()


def _write_member(out: io.BytesIO, member: Member, align: int) -> None:
    name = (member.name if member.local_name is None else member.local_name).encode()
    flags = member.flags if member.local_flags is None else member.local_flags
    method = member.method if member.local_method is None else member.local_method
    size = (0 if flags & 8 else len(member.data)) if member.local_size is None else member.local_size
    padding = -(out.tell() + 30 + len(name)) % align
    padding += align if 0 < padding < 4 else 0
    extra = b"FB" + struct.pack("<H", padding - 4) + b"Z" * (padding - 4) if padding else b""
    header = struct.pack(
        "<4s5H3L2H", b"PK\3\4", 0, flags, method, 0, 0, zlib.crc32(member.data), size, size, len(name), len(extra)
    )
    out.write(header + name + extra + member.data)
    if flags & 8:
        out.write(struct.pack("<4sLLL", b"PK\7\x08", zlib.crc32(member.data), len(member.data), len(member.data)))


def _write_entry(directory: io.BytesIO, member: Member, at: int, zip64: bool) -> None:
    name = member.name.encode()
    size = len(member.data) if member.size is None else member.size
    packed = size if member.packed is None else member.packed
    offset = at if member.header_offset is None else member.header_offset
    extra = struct.pack("<2H3Q", 1, 24, size, packed, offset) if zip64 else b""
    low_size, low_packed, low_offset = (0xFFFFFFFF,) * 3 if zip64 else (size, packed, offset)
    directory.write(
        struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 45, 45, member.flags, member.method, 0, 0, zlib.crc32(member.data), low_packed,
            low_size, len(name), len(extra), 0, 0, 0, 0, low_offset,
        )
        + name
        + extra
    )  # fmt: skip


def members_of(
    value: Any, *, protocol: int = 2, byteorder: str | None = "little", root: str = "archive"
) -> list[Member]:
    """Return the members of a checkpoint's zip, in torch's order."""
    archive = _Archive(protocol, legacy=False)
    pickled = archive.pickle(value)
    members = [Member(f"{root}/data.pkl", pickled), Member(f"{root}/.format_version", b"1")]
    if byteorder:
        members.append(Member(f"{root}/byteorder", byteorder.encode()))
    for key, storage in archive.storages.items():
        data = storage.data if byteorder != "big" else _swapped(storage)
        members.append(Member(f"{root}/data/{key}", data))
    return [*members, Member(f"{root}/version", b"3\n")]


def _swapped(storage: Storage) -> bytes:
    width = {"complex64": 4}.get(storage.dtype, WIDTHS[storage.dtype])
    return b"".join(storage.data[at : at + width][::-1] for at in range(0, len(storage.data), width))


def checkpoint_bytes(value: Any, *, align: int = 64, zip64: bool = True, **more: Any) -> bytes:
    """Write a checkpoint as torch has since 1.6."""
    return zip_bytes(members_of(value, **more), align=align, zip64=zip64)


def legacy_bytes(value: Any, *, protocol: int = 2, big: bool = False) -> bytes:
    """Write a checkpoint as torch did before 1.6."""
    archive = _Archive(protocol, legacy=True)
    machine = {"protocol_version": 1001, "little_endian": not big, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [archive.pickle(MAGIC), archive.pickle(1001), archive.pickle(machine), archive.pickle(value)]
    keys = sorted(archive.storages)
    parts.append(archive.pickle(list(keys)))
    for key in keys:
        storage = archive.storages[key]
        parts.append(storage.numel.to_bytes(8, "big" if big else "little"))
        parts.append(_swapped(storage) if big else storage.data)
    return b"".join(parts)


def with_member(members: Sequence[Member], suffix: str, **changes: Any) -> list[Member]:
    """Change one member, found by the end of its name."""
    assert any(member.name.endswith(suffix) for member in members)
    return [replace(member, **changes) if member.name.endswith(suffix) else member for member in members]


def expected_rows(state: Mapping[str, Tensor]) -> dict[str, tuple[str, list[int], bytes]]:
    """Return (dtype code, shape, bytes) of each tensor as safetensors must have it."""
    rows = {}
    for name, value in state.items():
        shape = list(value.shape)
        if value.storage.dtype == "float4_e2m1fn_x2":
            shape = [*shape[:-1], shape[-1] * 2] if shape else [2]
        rows[name] = (CODES[value.storage.dtype], shape, value.row())
    return rows
