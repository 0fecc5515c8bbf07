"""torch checkpoints since 1.6: a zip of raw storages and a small pickle that names them."""

from streamway.errors import CheckpointError
from streamway.storage.segments import ByteReader
from streamway.weights.pickle_machine import SAFE_FORMAT_STEP
from streamway.weights.pickles import read_pickle
from streamway.weights.torch_files import TorchFile, check_storage_sizes
from streamway.weights.torch_objects import TorchVocabulary
from streamway.weights.windows import ByteWindow
from streamway.weights.wording import show_name
from streamway.weights.zip_records import ZipRecords

_SMALL_RECORD_BYTES = 64


def read_torch_archive(reader: ByteReader) -> TorchFile:
    """Read a zip checkpoint's pickle and find its storages; no tensor's byte is read.

    Raises:
        UnsafePickleError: its pickle asks for more than tensors.
        CheckpointError: it is malformed or not a checkpoint.
    """
    records = ZipRecords(reader)
    if "constants.pkl" in records:
        raise CheckpointError(
            f"{reader.uri} is a TorchScript program, not a checkpoint: it has code beside its weights.",
            next_step=SAFE_FORMAT_STEP,
        )
    if "data.pkl" not in records:
        raise records.refuse("it is a zip archive without data.pkl, so torch did not write it")
    big_endian = _is_big_endian(records)
    subject = f"{reader.uri} (data.pkl)"
    vocabulary = TorchVocabulary(subject)
    place = records.locate(["data.pkl"])["data.pkl"]
    window = ByteWindow(reader, place.offset, place.offset + place.size_bytes, subject=subject)
    root = read_pickle(window, vocabulary, subject=subject)
    names = {key: f"data/{key}" for key in vocabulary.storages}
    for key, name in names.items():
        if name not in records:
            raise records.refuse(f"its pickle names storage {show_name(key)}, which is not in the archive")
    found = records.locate(names.values())
    storages = {key: found[name] for key, name in names.items()}
    check_storage_sizes(reader.uri, vocabulary.storages, storages)
    return TorchFile(reader=reader, root=root, storages=storages, big_endian=big_endian, form="zip")


def _is_big_endian(records: ZipRecords) -> bool:
    """Read the byte order record; archives before torch 2.1 have none and are little-endian."""
    if "byteorder" not in records:
        return False
    order = records.read("byteorder", _SMALL_RECORD_BYTES)
    if order not in (b"little", b"big"):
        raise records.refuse(f"its byte order is {show_name(repr(order))}, expected little or big")
    return order == b"big"
