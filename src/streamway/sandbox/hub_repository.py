"""Model repositories on disk, so that a commit is pushed to the sandbox's Hub by writing a few files.

    <root>/<org>/<name>/
        repository.json          private, gated, disabled, moved_to, scan issues
        refs.json                {"refs/heads/main": "<commit>", "refs/tags/v1": "<commit>"}
        commits/<commit>.json    parent, date, title, files
        blobs/<sha256>           bytes, hard-linked from where they were where the file system allows it

The server reads these files for each request, so a commit that any process adds is served at once. Names of
blobs are what is advertised: bytes may be put under a hash that is not theirs, to prove that a client notices.
"""

import contextlib
import fcntl
import fnmatch
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from streamway.sandbox.processes import read_json, write_json

# The patterns that the Hub writes into a new repository's .gitattributes (as far as models use them).
LFS_PATTERNS = (
    *("*.7z", "*.arrow", "*.bin", "*.bz2", "*.ckpt", "*.ftz", "*.gguf", "*.gz", "*.h5", "*.joblib", "*.mlmodel"),
    *("*.model", "*.msgpack", "*.npy", "*.npz", "*.onnx", "*.ot", "*.parquet", "*.pb", "*.pickle", "*.pkl", "*.pt"),
    *("*.pth", "*.rar", "*.safetensors", "*.tar", "*.tflite", "*.tgz", "*.wasm", "*.xz", "*.zip", "*.zst"),
)
# Files above 10 MB go to LFS whatever their name (huggingface.co, "Getting started with repositories").
LFS_THRESHOLD_BYTES = 10_000_000
_HASH_CHUNK_BYTES = 1 << 20

Gated = Literal["auto", "manual", False]


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What the Hub says about a file, true or not.

    Args:
        sha256: Hash that is advertised.
        size_bytes: Length that is advertised.
    """

    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """One file of a commit.

    Args:
        path: Its path in the repository.
        size_bytes: Length of its content, not of an LFS pointer.
        oid: Git's id of the blob: of the pointer where the content is in LFS.
        sha256: Hash of the content, and name of the blob on disk.
        lfs: Whether the content is in LFS.
    """

    path: str
    size_bytes: int
    oid: str
    sha256: str
    lfs: bool

    @property
    def etag(self) -> str:
        """The entity tag that the Hub gives: sha256 in LFS, else git's id."""
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True, kw_only=True)
class Commit:
    """One state of a repository.

    Args:
        sha: 40 hex digits.
        parent: The commit before it; empty for the first.
        date: RFC 3339 with milliseconds, as the Hub writes it.
        title: First line of its message.
        author: Who made it.
        files: All files, by path, in order.
    """

    sha: str
    parent: str
    date: str
    title: str
    author: str
    files: Mapping[str, HubFile]


@dataclass(frozen=True, kw_only=True)
class RepositorySettings:
    """What the Hub knows about a repository beside its files.

    Args:
        private: Hidden from those who have no access.
        gated: Files are given only to those who were admitted.
        disabled: Taken down by the Hub.
        moved_to: The id it has now, for a renamed repository; it needs no commits.
        unsafe_files: Paths that the Hub's scanners found unsafe.
        scanned: Whether those scanners have finished.
    """

    private: bool = False
    gated: Gated = False
    disabled: bool = False
    moved_to: str = ""
    unsafe_files: tuple[str, ...] = ()
    scanned: bool = True


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository that exists.

    Args:
        model_id: `org/name`, or `name` alone for the oldest models.
        path: Its folder.
    """

    model_id: str
    path: Path

    @property
    def settings(self) -> RepositorySettings:
        known = read_json(self.path / "repository.json") or {}
        return RepositorySettings(**{**known, "unsafe_files": tuple(known.get("unsafe_files", ()))})

    @property
    def refs(self) -> dict[str, str]:
        """Commit of each full ref name."""
        return read_json(self.path / "refs.json") or {}

    def blob_path(self, file: HubFile) -> Path:
        """Where a file's bytes are."""
        return self.path / "blobs" / file.sha256

    def read_text(self, commit: Commit, path: str) -> str:
        """Return a small text file; empty where the commit has none of that name."""
        file = commit.files.get(path)
        return self.blob_path(file).read_text(errors="replace") if file else ""

    def resolve(self, revision: str) -> Commit | None:
        """Return what a branch, a tag, a full ref or the start of a commit's id (7 digits or more) means."""
        refs = self.refs
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if name in refs:
                return self.commit(refs[name])
        if len(revision) < 7 or not set(revision) <= set("0123456789abcdef"):
            return None
        matches = sorted((self.path / "commits").glob(f"{revision}*.json"))
        return self.commit(matches[0].stem) if len(matches) == 1 else None

    def commit(self, sha: str) -> Commit:
        """Return a commit that exists."""
        return _read_commit(self.path / "commits" / f"{sha}.json")

    def history(self, commit: Commit) -> Iterator[Commit]:
        """Yield a commit and those before it, newest first."""
        yield commit
        while commit.parent:
            commit = self.commit(commit.parent)
            yield commit


def find_repository(root: Path, model_id: str) -> Repository | None:
    """Return a repository by its id, or None; an id that is no plain path is never looked up."""
    parts = model_id.split("/")
    if not 1 <= len(parts) <= 2 or any(part in ("", ".", "..") or "\0" in part for part in parts):
        return None
    path = root.joinpath(*parts)
    return Repository(model_id=model_id, path=path) if (path / "repository.json").is_file() else None


def list_repositories(root: Path) -> list[Repository]:
    """Return every repository, in order of id."""
    found = sorted([*root.glob("*/repository.json"), *root.glob("*/*/repository.json")])
    return [Repository(model_id=record.parent.relative_to(root).as_posix(), path=record.parent) for record in found]


def set_repository(root: Path, model_id: str, settings: RepositorySettings) -> Repository:
    """Create a repository, or change what is known about it."""
    path = root / model_id
    write_json(path / "repository.json", asdict(settings))
    return Repository(model_id=model_id, path=path)


def add_commit(
    root: Path,
    model_id: str,
    files: Mapping[str, Path | bytes | None],
    *,
    title: str = "Upload model",
    author: str = "sandbox",
    date: datetime | None = None,
    branch: str = "main",
    keep_other_files: bool = True,
    promises: Mapping[str, Promise] | None = None,
) -> str:
    """Push a commit, and make the repository where there is none.

    The same content at the same date after the same parent gets the same id.

    Args:
        root: Folder of all repositories: `<state>/hub/repos`.
        model_id: `org/name`.
        files: Content by path: bytes, a local file (hard-linked where possible, so write no more to it), or
            None to delete.
        title: First line of the message.
        author: Name in the list of commits.
        date: When; now where left out.
        branch: Which branch moves to the new commit.
        keep_other_files: Whether files of the branch that `files` does not name stay.
        promises: Hash and length to advertise for some paths instead of the true ones.

    Returns:
        The commit's id.
    """
    repository = find_repository(root, model_id) or set_repository(root, model_id, RepositorySettings())
    with _locked(repository.path):
        parent = repository.refs.get(f"refs/heads/{branch}", "")
        tree = dict(repository.commit(parent).files) if parent and keep_other_files else {}
        for path, content in files.items():
            _check_path(path)
            if content is None:
                tree.pop(path, None)
            else:
                tree[path] = _store(repository, path, content, (promises or {}).get(path))
        commit = _sealed(parent, tree, title=title, author=author, date=date or datetime.now(UTC))
        write_json(repository.path / "commits" / f"{commit.sha}.json", asdict(commit))
        set_ref(repository, f"refs/heads/{branch}", commit.sha)
    return commit.sha


def set_ref(repository: Repository, ref: str, sha: str) -> None:
    """Point a full ref name, such as `refs/tags/v1`, at a commit."""
    write_json(repository.path / "refs.json", {**repository.refs, ref: sha})


def _check_path(path: str) -> None:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or str(pure) != path:
        raise ValueError(f"{path!r} is no path inside a repository; expected forward slashes and no '..'")


def _store(repository: Repository, path: str, content: Path | bytes, promise: Promise | None) -> HubFile:
    true = _measure(content)
    said = promise or true
    blob = repository.path / "blobs" / said.sha256
    if not blob.exists():
        blob.parent.mkdir(parents=True, exist_ok=True)
        _put(content, blob)
    name = PurePosixPath(path).name
    lfs = said.size_bytes > LFS_THRESHOLD_BYTES or any(fnmatch.fnmatch(name, one) for one in LFS_PATTERNS)
    stored = pointer_text(said).encode() if lfs else _read(content)
    return HubFile(path=path, size_bytes=said.size_bytes, oid=_git_blob_id(stored), sha256=said.sha256, lfs=lfs)


def _read(content: Path | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


def _measure(content: Path | bytes) -> Promise:
    if isinstance(content, bytes):
        return Promise(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    with content.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Promise(sha256=digest, size_bytes=file.tell())


def _put(content: Path | bytes, blob: Path) -> None:
    """Make a blob under its name in one step, so that a killed push leaves no half blob to be trusted."""
    temporary = blob.with_name(f".{blob.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    if isinstance(content, bytes):
        temporary.write_bytes(content)
    else:
        link_or_copy(content, temporary)
    temporary.replace(blob)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where the file system has no hard links between the two places."""
    try:
        target.hardlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, target)


def pointer_text(file: Promise | HubFile) -> str:
    """Return the text that git holds in place of an LFS file (git-lfs specification, "The Pointer")."""
    lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{file.sha256}")
    return "\n".join((*lines, f"size {file.size_bytes}\n"))


def _git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _sealed(parent: str, tree: Mapping[str, HubFile], *, title: str, author: str, date: datetime) -> Commit:
    """Give a commit the id that follows from its content."""
    stamp = date.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    listing = [[path, tree[path].oid] for path in sorted(tree)]
    identity = json.dumps([parent, stamp, title, author, listing]).encode()
    sha = hashlib.sha1(identity, usedforsecurity=False).hexdigest()
    files = {path: tree[path] for path in sorted(tree)}
    return Commit(sha=sha, parent=parent, date=stamp, title=title, author=author, files=files)


@lru_cache(maxsize=256)
def _read_commit(path: Path) -> Commit:
    """Read a commit once: it never changes."""
    fields: dict[str, Any] = json.loads(path.read_text())
    files = {name: HubFile(**entry) for name, entry in fields.pop("files").items()}
    return Commit(files=files, **fields)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with (path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
