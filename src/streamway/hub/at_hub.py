"""A model where it lies at the Hub, for those who want to know what will become of it before a byte of it moves."""

from streamway.hub.pull import Pull
from streamway.hub.reader import HubReader
from streamway.hub.repository import Repository, hub_token, read_repository
from streamway.hub.selection import select_files
from streamway.storage import Patience
from streamway.storage.records import LeftFile, RecordedFile, Snapshot


class ModelAtHub:
    """The files of one commit that serving needs.

    Args:
        repository: What the Hub says of the commit.
        token: The Hub's token; None for none.
        patience: How long to wait for the Hub.
    """

    def __init__(self, repository: Repository, token: str | None, patience: Patience | None = None) -> None:
        self._pull = Pull(repository, token, patience)
        selection = select_files(repository, self._pull.read_small)
        self._files = {file.path: file for file in selection.files}
        self.snapshot = Snapshot(
            model_id=repository.model_id,
            revision=repository.revision,
            commit_sha=repository.commit_sha,
            licence=repository.licence,
            source=repository.endpoint,
            files=tuple(
                RecordedFile(
                    path=file.path, uri=self._pull.open(file).uri, size_bytes=file.size_bytes, sha256=file.sha256
                )
                for file in selection.files
            ),
        )

    def open(self, file: LeftFile) -> HubReader:
        """Open one of the files that the snapshot names."""
        return self._pull.open(self._files[file.path])

    def read_small(self, path: str) -> bytes | None:
        """Return a small file whole, checked against the Hub's hash; None where the model has none of that path.

        Raises:
            ChecksumError: its bytes are not what the Hub promises.
        """
        file = self._files.get(path)
        return self._pull.read_small(file) if file else None


def find_at_hub(
    *, model_id: str, commit_sha: str, token: str | None = None, patience: Patience | None = None
) -> ModelAtHub:
    """Look at the files of a commit, as a pull that left them all at the Hub would record them.

    Raises:
        HubError: the model cannot be had.
        NoWeightsError: there is nothing to serve.
    """
    token = hub_token(token)
    return ModelAtHub(read_repository(model_id, commit_sha, token=token, patience=patience), token, patience)
