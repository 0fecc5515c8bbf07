"""A bucket, looked at before anything is moved: whether it is there, where it is, and what this account may do."""

import urllib.parse
from dataclasses import dataclass

from streamway.errors import StorageAccessError
from streamway.storage.cloud import cloud_storage

NEEDED_PERMISSIONS = (
    "storage.objects.create",
    "storage.objects.delete",
    "storage.objects.get",
    "storage.objects.list",
    "storage.multipartUploads.create",
)
"""What publishing a release takes; roles/storage.objectUser has all of them.
https://cloud.google.com/storage/docs/access-control/iam-permissions"""


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A bucket as it is.

    Args:
        name: Its name.
        location: Region, dual-region or multi-region, in capitals.
    """

    name: str
    location: str


def describe_bucket(name: str) -> Bucket:
    """Look at a bucket and at what this account may do in it.

    Raises:
        BucketNotFoundError: there is none, or this account may not see it.
        StorageAccessError: this account lacks a permission that publishing needs; all missing ones are named.
    """
    described = cloud_storage().ask_bucket(name)
    query = urllib.parse.urlencode([("permissions", permission) for permission in NEEDED_PERMISSIONS])
    granted = cloud_storage().ask_bucket(name, f"/iam/testPermissions?{query}").get("permissions", ())
    missing = [permission for permission in NEEDED_PERMISSIONS if permission not in granted]
    if missing:
        raise StorageAccessError(
            f"gs://{name}: this account lacks {', '.join(missing)}.",
            next_step="Grant it roles/storage.objectUser on the bucket.",
        )
    return Bucket(name=name, location=str(described.get("location", "unknown")))
