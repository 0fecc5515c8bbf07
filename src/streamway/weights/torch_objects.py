"""The few things a torch checkpoint's pickle may name, and what they become here: descriptions of tensors.

The list follows what `torch.save` writes for tensors, parameters, buffers and their usual company (versions 0.4 to
2.13), as torch's own `weights_only` loader accepts them. A tensor becomes a TensorRef: a storage's key and a view of
it. Nothing here allocates by a number that the file gives.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from streamway.errors import UnsafePickleError
from streamway.weights.dtypes import (
    STORAGE_CLASSES,
    TORCH_DTYPE_ALIASES,
    TORCH_DTYPES,
    TORCH_ONLY_DTYPES,
    torch_element_bytes,
)
from streamway.weights.pickle_machine import KEY_LIMIT, SAFE_FORMAT_STEP, Constructor, Opaque, OrderedMapping
from streamway.weights.wording import show_name

_MAX_DIMENSIONS = 64
_MAX_COUNT = 1 << 62


@dataclass(frozen=True, slots=True)
class TorchDType:
    """A dtype or a storage class, by torch's name of the dtype."""

    name: str


@dataclass(frozen=True, slots=True)
class TypeMarker:
    """A tensor type that may be named and not called."""

    name: str


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A storage that a pickle names.

    Args:
        key: Its name in the archive.
        size_bytes: Its length, as the pickle says.
        start_bytes: Where a view of it begins; only the oldest files have views of storages.
        dtype: torch's name of its element type.
    """

    key: str
    size_bytes: int
    start_bytes: int
    dtype: str


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor that a pickle describes.

    Args:
        storage: Where its elements are.
        dtype: torch's name of its element type.
        offset: Its first element, counted in elements from the storage's start.
        shape: Its dimensions.
        strides: Elements to step for each dimension.
        view: "conj" or "neg" where the tensor is a lazy view that changes values, else empty.
    """

    storage: StorageRef
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    view: str = ""


class TorchVocabulary:
    """The allow-list of torch checkpoints.

    Args:
        subject: The file, for messages.

    Attributes:
        storages: Every storage the pickle named, by key, with the largest size it claimed.
    """

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.storages: dict[str, StorageRef] = {}

    def find_global(self, module: str, name: str) -> Any:
        if name.endswith("Storage") and module in ("torch", "torch.cuda") and name in STORAGE_CLASSES:
            return TorchDType(STORAGE_CLASSES[name])
        if module == "torch" and (name in TORCH_DTYPES or name in TORCH_ONLY_DTYPES or name in TORCH_DTYPE_ALIASES):
            return TorchDType(TORCH_DTYPE_ALIASES.get(name, name))
        return _ALLOWED.get((module, name))

    def explain(self, module: str, name: str) -> str:
        return _EXPLANATIONS.get((module, name), "")

    def load_persistent(self, identifier: Any) -> StorageRef:
        if (
            type(identifier) is not tuple
            or len(identifier) not in (5, 6)
            or identifier[0] not in ("storage", b"storage")
        ):
            raise self._unknown_identifier(identifier)
        dtype, key, numel = identifier[1], identifier[2], identifier[4]
        if not isinstance(dtype, TorchDType):
            raise TypeError("its storage has no element type")
        if type(key) is int:
            key = str(key)
        if type(key) is not str:
            raise TypeError("its storage has no name")
        size = _count(numel) * torch_element_bytes(dtype.name)
        self._record(StorageRef(key, size, 0, dtype.name))
        return _viewed(key, size, dtype.name, identifier[5] if len(identifier) == 6 else None)

    def _record(self, storage: StorageRef) -> None:
        known = self.storages.get(storage.key)
        if known is None or known.size_bytes < storage.size_bytes:
            self.storages[storage.key] = storage

    def _unknown_identifier(self, identifier: Any) -> Exception:
        kind = identifier[0] if type(identifier) is tuple and identifier else identifier
        if kind in ("module", b"module"):
            return UnsafePickleError(
                f"{self.subject} holds a whole pickled model with its source code, not only weights. "
                "Nothing was executed.",
                next_step=SAFE_FORMAT_STEP,
            )
        return ValueError("its persistent id is not that of a storage")


def _viewed(key: str, size: int, dtype: str, view: Any) -> StorageRef:
    """Apply the view of a storage that files written before torch 0.4 may carry."""
    if view is None:
        return StorageRef(key, size, 0, dtype)
    _, offset, view_size = view
    element = torch_element_bytes(dtype)
    start, length = _count(offset) * element, _count(view_size) * element
    if start + length > size:
        raise ValueError(f"a view of storage {show_name(key)} ends behind it")
    return StorageRef(key, length, start, dtype)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_COUNT:
        raise ValueError("a size, stride or offset is not a number from 0 to 2^62")
    return value


def _counts(values: Any) -> tuple[int, ...]:
    if type(values) not in (tuple, list) or len(values) > _MAX_DIMENSIONS:
        raise ValueError(f"a shape is not a list of at most {_MAX_DIMENSIONS} numbers")
    return tuple(_count(value) for value in values)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, dtype: str, metadata: Any = None) -> TensorRef:
    sizes, steps = _counts(shape), _counts(strides)
    if len(sizes) != len(steps):
        raise ValueError(f"it has {len(sizes)} dimensions and {len(steps)} strides")
    view = ""
    if metadata:
        if not isinstance(metadata, dict):
            raise ValueError("its metadata is not a dict")
        view = "conj" if metadata.get("conj") else "neg" if metadata.get("neg") else ""
    return TensorRef(storage, dtype, _count(offset), sizes, steps, view)


def _require_storage(value: Any) -> StorageRef:
    if not isinstance(value, StorageRef):
        raise ValueError("its first argument is not a storage")
    return value


def _rebuild_tensor(arguments: tuple[Any, ...]) -> TensorRef:
    storage, offset, shape, strides = arguments
    return _tensor(_require_storage(storage), offset, shape, strides, storage.dtype)


def _rebuild_tensor_v2(arguments: tuple[Any, ...]) -> TensorRef:
    storage, offset, shape, strides, _requires_grad, _hooks, *metadata = arguments
    return _tensor(_require_storage(storage), offset, shape, strides, storage.dtype, *metadata)


def _rebuild_tensor_v3(arguments: tuple[Any, ...]) -> TensorRef:
    storage, offset, shape, strides, _requires_grad, _hooks, dtype, *metadata = arguments
    if not isinstance(dtype, TorchDType):
        raise ValueError("its seventh argument is not a dtype")
    return _tensor(_require_storage(storage), offset, shape, strides, dtype.name, *metadata)


def _rebuild_parameter(arguments: tuple[Any, ...]) -> TensorRef:
    if len(arguments) not in (3, 4) or not isinstance(arguments[0], TensorRef):
        raise ValueError("it does not wrap a tensor")
    return arguments[0]


def _rebuild_from_type(arguments: tuple[Any, ...]) -> TensorRef:
    function, kind, inner, _state = arguments
    rebuilds = isinstance(function, Constructor) and function.build in _REBUILDERS
    if not rebuilds or not isinstance(kind, TypeMarker) or type(inner) is not tuple:
        raise ValueError("it does not wrap a tensor")
    return cast(TensorRef, function.build(inner))


_REBUILDERS = (_rebuild_tensor, _rebuild_tensor_v2, _rebuild_tensor_v3)


def _ordered_mapping(arguments: tuple[Any, ...]) -> OrderedMapping:
    made = OrderedMapping()
    if arguments:
        (source,) = arguments
        pairs = source.items() if isinstance(source, dict) else source
        for key, value in pairs:
            if type(key) not in (str, int, bytes) or (type(key) is int and abs(key) >= KEY_LIMIT):
                raise ValueError("a key is neither text nor a number that a key may be")
            made[key] = value
    return made


def _size(arguments: tuple[Any, ...]) -> tuple[int, ...]:
    return _counts(arguments[0]) if arguments else ()


def _encode(arguments: tuple[Any, ...]) -> bytes:
    text, encoding = arguments
    if type(text) is not str or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise ValueError("it encodes something else than text")
    return text.encode(encoding)


def _empty_bytes(arguments: tuple[Any, ...]) -> bytes:
    """Before protocol 3, empty bytes are a call without arguments."""
    if arguments:
        raise ValueError("only empty bytes are written as a call")
    return b""


def _opaque(what: str) -> Any:
    return lambda _arguments: Opaque(what)


_PLAIN_CONSTRUCTORS: Mapping[str, Any] = {
    "collections.OrderedDict": _ordered_mapping,
    "collections.Counter": _ordered_mapping,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": _size,
    "torch.device": _opaque("torch.device"),
    "torch.serialization._get_layout": _opaque("torch.layout"),
    "_codecs.encode": _encode,
    "builtins.bytes": _empty_bytes,
    "__builtin__.bytes": _empty_bytes,
    "builtins.set": _opaque("set"),
    "builtins.frozenset": _opaque("frozenset"),
    "builtins.complex": _opaque("complex"),
    "builtins.bytearray": _opaque("bytearray"),
    "builtins.slice": _opaque("slice"),
    "__builtin__.set": _opaque("set"),
    "__builtin__.frozenset": _opaque("frozenset"),
    "__builtin__.complex": _opaque("complex"),
    "__builtin__.bytearray": _opaque("bytearray"),
    "numpy.core.multiarray.scalar": _opaque("numpy scalar"),
    "numpy._core.multiarray.scalar": _opaque("numpy scalar"),
    "numpy.dtype": _opaque("numpy.dtype"),
}

_TYPES = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")


def _split(dotted: str) -> tuple[str, str]:
    module, _, name = dotted.rpartition(".")
    return module, name


_ALLOWED: dict[tuple[str, str], Any] = {
    **{_split(dotted): Constructor(dotted, build) for dotted, build in _PLAIN_CONSTRUCTORS.items()},
    **{_split(dotted): TypeMarker(dotted) for dotted in _TYPES},
    ("torch.storage", "UntypedStorage"): TorchDType("uint8"),
    ("torch", "UntypedStorage"): TorchDType("uint8"),
}

_EXPLANATIONS: dict[tuple[str, str], str] = {
    ("torch._utils", "_rebuild_sparse_tensor"): "It is a sparse tensor, which safetensors cannot hold.",
    ("torch._utils", "_rebuild_qtensor"): "It is a tensor of torch's own quantisation, which safetensors cannot hold.",
    ("torch._utils", "_rebuild_nested_tensor"): "It is a nested tensor, which safetensors cannot hold.",
    ("torch._utils", "_rebuild_wrapper_subclass"): "It is a tensor subclass without bytes of its own.",
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): "It is a tensor on the meta device, which has no bytes.",
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): "It is an XLA tensor kept as a numpy array.",
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): "It is a device tensor kept in another dtype.",
    ("torch.jit._pickle", "build_intlist"): "It is a TorchScript program.",
}
