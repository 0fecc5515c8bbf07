"""A torch checkpoint as tensors that lie somewhere in a file, whichever of torch's formats it has."""

from dataclasses import dataclass, field
from typing import Any

from streamway.errors import CheckpointError
from streamway.storage.segments import ByteReader
from streamway.weights.torch_objects import StorageRef
from streamway.weights.zip_records import DataRange


@dataclass(frozen=True, kw_only=True)
class TorchFile:
    """A checkpoint's object and where its storages are.

    Args:
        reader: The file.
        root: What was pickled: mappings, lists and TensorRefs.
        storages: Byte range of each storage, by key.
        big_endian: Whether its numbers must be turned around.
        form: What it is, for reports: "zip" or "legacy".
    """

    reader: ByteReader
    root: Any
    storages: dict[str, DataRange] = field(repr=False)
    big_endian: bool
    form: str


def check_storage_sizes(subject: str, named: dict[str, StorageRef], found: dict[str, DataRange]) -> None:
    """Hold what the pickle says of each storage against the bytes that are there.

    Raises:
        CheckpointError: a storage is shorter than the pickle says.
    """
    for key, storage in named.items():
        if found[key].size_bytes < storage.size_bytes:
            raise CheckpointError(
                f"{subject}: its pickle says that storage {key!r} has {storage.size_bytes:,} bytes, and there are "
                f"{found[key].size_bytes:,}.",
                next_step="Download the file again: it is cut off or was changed.",
            )
