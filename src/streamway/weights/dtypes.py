"""One table of element types, because three vocabularies name them: safetensors, torch and torch's storage classes.

Sources: the dtype list of the safetensors 0.8 format, torch's `torch.storage._dtype_to_storage_type_map`, and trials
with torch 2.13, which writes the newer types (uint16 to uint64, float8) as an UntypedStorage with the dtype apart.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class DType:
    """One element type.

    Args:
        code: Its name in safetensors, such as `BF16`.
        bits: Width of one element.
        word_bytes: Width of the unit that byte order applies to; half an element for complex numbers.
    """

    code: str
    bits: int
    word_bytes: int

    @property
    def alignment(self) -> int:
        """Whole bytes an element's address must be a multiple of."""
        return max(1, self.bits // 8)


def _dtype(code: str, bits: int, word_bytes: int | None = None) -> DType:
    return DType(code=code, bits=bits, word_bytes=word_bytes or max(1, bits // 8))


DTYPES: dict[str, DType] = {
    dtype.code: dtype
    for dtype in (
        _dtype("BOOL", 8),
        _dtype("F4", 4),
        _dtype("F6_E2M3", 6),
        _dtype("F6_E3M2", 6),
        _dtype("U8", 8),
        _dtype("I8", 8),
        _dtype("F8_E5M2", 8),
        _dtype("F8_E4M3", 8),
        _dtype("F8_E8M0", 8),
        _dtype("F8_E4M3FNUZ", 8),
        _dtype("F8_E5M2FNUZ", 8),
        _dtype("I16", 16),
        _dtype("U16", 16),
        _dtype("F16", 16),
        _dtype("BF16", 16),
        _dtype("I32", 32),
        _dtype("U32", 32),
        _dtype("F32", 32),
        _dtype("C64", 64, word_bytes=4),
        _dtype("F64", 64),
        _dtype("I64", 64),
        _dtype("U64", 64),
    )
}

TORCH_DTYPES: dict[str, str] = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float4_e2m1fn_x2": "F4",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "complex64": "C64",
    "float64": "F64",
    "int64": "I64",
    "uint64": "U64",
}
"""torch's name of a dtype to the safetensors code that holds it without changing a bit."""

TORCH_ONLY_DTYPES = frozenset({"complex32", "complex128", "quint8", "qint8", "qint32", "quint4x2", "quint2x4"})
"""dtypes that torch saves and safetensors cannot hold; they are refused by name."""

TORCH_DTYPE_ALIASES = {
    "half": "float16",
    "float": "float32",
    "double": "float64",
    "short": "int16",
    "int": "int32",
    "long": "int64",
    "cfloat": "complex64",
    "cdouble": "complex128",
    "chalf": "complex32",
}

STORAGE_CLASSES: dict[str, str] = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QUInt8Storage": "quint8",
    "QInt8Storage": "qint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
}
"""Typed storage classes of module `torch` to the dtype of their elements."""

_TORCH_ONLY_BYTES = {
    "complex32": 4,
    "complex128": 16,
    "quint8": 1,
    "qint8": 1,
    "qint32": 4,
    "quint4x2": 1,
    "quint2x4": 1,
}


def torch_element_bytes(torch_dtype: str) -> int:
    """Bytes of one element as torch stores it; a float4 pair counts as one element there."""
    if torch_dtype in _TORCH_ONLY_BYTES:
        return _TORCH_ONLY_BYTES[torch_dtype]
    return DTYPES[TORCH_DTYPES[torch_dtype]].alignment
