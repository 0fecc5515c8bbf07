"""Bytes at a URI, a local path or gs://: read, written, moved, checked, and published as releases."""

from streamway.storage.addresses import bucket_of, check_relative, is_gs, join
from streamway.storage.buckets import Bucket, describe_bucket
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
from streamway.storage.layout import ModelLayout
from streamway.storage.manifest import Manifest, ManifestFile
from streamway.storage.readers import VersionedReader, open_reader
from streamway.storage.release import (
    Release,
    find_published_files,
    find_release,
    read_other_manifests,
    remove_staging,
    upload_model,
    verify_release,
)
from streamway.storage.transfer import write_files

__all__ = [
    "Bucket",
    "Manifest",
    "ManifestFile",
    "ModelLayout",
    "Patience",
    "PreconditionFailedError",
    "Release",
    "StoredFile",
    "VersionedReader",
    "bucket_of",
    "check_relative",
    "copy_file",
    "delete_files",
    "describe_bucket",
    "exists",
    "find_published_files",
    "find_release",
    "is_gs",
    "join",
    "list_files",
    "open_reader",
    "read_file",
    "read_other_manifests",
    "remove_staging",
    "upload_model",
    "verify_release",
    "write_file",
    "write_files",
]
