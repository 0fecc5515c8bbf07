"""Bytes at a URI, a local path or gs://: read, written, moved, checked, and published as releases."""

from streamway.storage.addresses import check_relative, is_gs, join
from streamway.storage.cloud import PreconditionFailedError
from streamway.storage.files import (
    StoredFile,
    copy_file,
    delete_files,
    exists,
    list_files,
    read_file,
    write_file,
)
from streamway.storage.http import Patience
from streamway.storage.readers import VersionedReader, open_reader
from streamway.storage.transfer import write_files

__all__ = [
    "Patience",
    "PreconditionFailedError",
    "StoredFile",
    "VersionedReader",
    "check_relative",
    "copy_file",
    "delete_files",
    "exists",
    "is_gs",
    "join",
    "list_files",
    "open_reader",
    "read_file",
    "write_file",
    "write_files",
]
