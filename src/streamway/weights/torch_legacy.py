"""torch checkpoints before 1.6, or saved with the old format on purpose: pickles and storages in one row.

Layout, as `torch.serialization._legacy_save` writes it: a pickled magic number, a pickled protocol version, a pickled
description of the machine, the pickled object, the pickled list of storage keys, then for each key a 64-bit count of
elements and the elements.
"""

from typing import Any

from streamway.errors import CheckpointError
from streamway.storage.segments import ByteReader
from streamway.weights.dtypes import torch_element_bytes
from streamway.weights.pickles import read_pickle
from streamway.weights.torch_files import TorchFile, check_storage_sizes
from streamway.weights.torch_objects import TorchVocabulary
from streamway.weights.windows import ByteWindow
from streamway.weights.wording import show_name
from streamway.weights.zip_records import DataRange

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_COUNT_BYTES = 8


def read_torch_legacy(reader: ByteReader) -> TorchFile:
    """Read an old checkpoint's pickles and find its storages; no tensor's byte is read.

    Raises:
        UnsafePickleError: a pickle asks for more than tensors.
        CheckpointError: it is malformed or not a checkpoint.
    """
    subject = reader.uri
    window = ByteWindow(reader, 0, reader.size_bytes, subject=subject)
    vocabulary = TorchVocabulary(subject)
    magic, version, machine = (read_pickle(window, vocabulary, subject=subject) for _ in range(3))
    if magic != MAGIC_NUMBER or version != _PROTOCOL_VERSION or not isinstance(machine, dict):
        raise CheckpointError(
            f"{subject} is a pickle, and not one that torch.save made: it does not start with torch's magic number.",
            next_step="Check that the file is a model; ask its owner for safetensors.",
        )
    root = read_pickle(window, vocabulary, subject=subject)
    keys = _check_keys(read_pickle(window, vocabulary, subject=subject), vocabulary, subject)
    big_endian = machine.get("little_endian") is False
    storages = _find_storages(reader, window, keys, vocabulary, "big" if big_endian else "little")
    check_storage_sizes(subject, vocabulary.storages, storages)
    return TorchFile(reader=reader, root=root, storages=storages, big_endian=big_endian, form="legacy")


def _check_keys(keys: Any, vocabulary: TorchVocabulary, subject: str) -> list[str]:
    if not isinstance(keys, list) or not all(type(key) in (str, int) for key in keys):
        raise CheckpointError(f"{subject}: its list of storages is not a list of names.")
    names = [str(key) for key in keys]
    missing = sorted(set(vocabulary.storages) - set(names)) + sorted(set(names) - set(vocabulary.storages))
    if missing or len(set(names)) != len(names):
        raise CheckpointError(
            f"{subject}: its list of storages does not match its tensors"
            + (f", first at {show_name(missing[0])}." if missing else ": one is listed twice."),
            next_step="Download the file again; if it is the same, ask the model's owner for safetensors.",
        )
    return names


def _find_storages(
    reader: ByteReader, window: ByteWindow, keys: list[str], vocabulary: TorchVocabulary, order: Any
) -> dict[str, DataRange]:
    """Step from storage to storage: each announces its own length."""
    offset = window.offset
    storages: dict[str, DataRange] = {}
    for key in keys:
        cursor = ByteWindow(reader, offset, min(offset + _COUNT_BYTES, reader.size_bytes), subject=reader.uri)
        count = int.from_bytes(cursor.take(_COUNT_BYTES), order, signed=True)
        size = count * torch_element_bytes(vocabulary.storages[key].dtype)
        start = offset + _COUNT_BYTES
        if count < 0 or start + size > reader.size_bytes:
            raise CheckpointError(
                f"{reader.uri}: storage {show_name(key)} announces {size:,} bytes at offset {start:,}, and the file "
                f"ends at {reader.size_bytes:,}.",
                next_step="Download the file again: it is cut off or was changed.",
            )
        storages[key] = DataRange(start, size)
        offset = start + size
    return storages
