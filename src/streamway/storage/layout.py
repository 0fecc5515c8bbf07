"""Where everything of one model and one commit is, under the root of all releases.

ROOT/.staging/<org>/<name>/<sha>/     in flight; removed after publication
ROOT/<org>/<name>/<sha>/              what the engine is pointed at
ROOT/<org>/<name>/<sha>.manifest.json written last: without it there is no release
"""

import re
from dataclasses import dataclass

from streamway.errors import StorageError
from streamway.storage.addresses import join

_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_COMMIT_SHA = re.compile(r"[0-9a-f]{40}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_ROOT = re.compile(r"(gs://[a-z0-9]|file:///).*", re.DOTALL)
MANIFEST_SUFFIX = ".manifest.json"


@dataclass(frozen=True)
class ModelLayout:
    """Places of one commit of one model.

    Args:
        release_root: gs://BUCKET/PREFIX or a local folder.
        model_id: `org/name`, or `name` alone for the oldest models.
        commit_sha: 40 hex digits.

    Raises:
        StorageError: the id or the commit is not one.
    """

    release_root: str
    model_id: str
    commit_sha: str

    def __post_init__(self) -> None:
        if not self.release_root or (_SCHEME.match(self.release_root) and not _ROOT.fullmatch(self.release_root)):
            raise StorageError(
                f"release root {self.release_root!r}: expected gs://BUCKET/PREFIX or a folder.",
                next_step="Give the address of a bucket, and a prefix in it.",
            )
        if not _MODEL_ID.fullmatch(self.model_id):
            raise StorageError(
                f"model id {self.model_id!r}: expected `org/name`.",
                next_step="Write it as the Hub does, such as HuggingFaceTB/SmolLM2-135M-Instruct.",
            )
        if not _COMMIT_SHA.fullmatch(self.commit_sha):
            raise StorageError(
                f"commit {self.commit_sha!r}: expected 40 hex digits.",
                next_step="Copy the whole id from the Hub's list of commits, or from `streamway status`.",
            )

    @property
    def staging_uri(self) -> str:
        return join(self.release_root, ".staging", self.model_id, self.commit_sha) + "/"

    @property
    def snapshot_uri(self) -> str:
        """Where the pull leaves its files and its record."""
        return join(self.staging_uri, "source")

    @property
    def weights_uri(self) -> str:
        """Where the conversion leaves its files and its record."""
        return join(self.staging_uri, "weights")

    @property
    def model_uri(self) -> str:
        """Folder of all releases of this model."""
        return join(self.release_root, self.model_id) + "/"

    @property
    def release_uri(self) -> str:
        return join(self.release_root, self.model_id, self.commit_sha) + "/"

    @property
    def manifest_uri(self) -> str:
        return manifest_uri_of(self.release_uri)

    @property
    def report_uri(self) -> str:
        """Where the report of the run that made the release lies."""
        return self.release_uri.rstrip("/") + ".report.html"


def manifest_uri_of(release_uri: str) -> str:
    """Return where the manifest of a release is."""
    return release_uri.rstrip("/") + MANIFEST_SUFFIX
