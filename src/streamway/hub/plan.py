"""What a pull would do, found out without moving weights: files, bytes, requests, time, and what the policies say."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from streamway.errors import PolicyError
from streamway.hub.policy import find_remote_code, flagged_files, judge
from streamway.hub.pull import Pull
from streamway.hub.repository import Repository, hub_token, read_repository
from streamway.hub.selection import Selection, select_files
from streamway.storage import ModelLayout, Patience, find_published_files, find_release, join
from streamway.storage.estimate import TransferEstimate, estimate_transfer
from streamway.storage.files import list_files
from streamway.storage.transfer import MEMORY_BYTES, WORKERS

_PROBE_BYTES = 8 * 1024 * 1024
_ALREADY = ("in staging", "in another release", "published")


@dataclass(frozen=True, kw_only=True)
class PlannedFile:
    """One file of a plan.

    Args:
        path: In the model.
        size_bytes: Its length.
        state: "to be moved", "in staging", "in another release" or "published".
    """

    path: str
    size_bytes: int
    state: str


@dataclass(frozen=True, kw_only=True)
class PullPlan:
    """What a pull would do.

    Args:
        model_id: As the Hub writes it.
        revision: What was asked for.
        commit_sha: What that means now.
        licence: From the model card, or "unknown".
        gated: Whether access must be asked for; this token has it.
        scan: What the Hub's scanners say about the files to be taken.
        remote_code: Which files ask for code of the repository to be run.
        pickled: Whether the weights must be converted.
        refused: Why a pull would refuse; "" where it would not.
        release_uri: Where the release will be, or is.
        staging_uri: Where the snapshot goes.
        already_published: Whether the release is there.
        files: In order of path.
        size_bytes: Of all files.
        move_bytes: Of those to be moved.
        transfer: Requests, parts and memory.
        bytes_per_second: As measured just now on one connection; 0 where there was nothing to measure.
        seconds: Estimated for the pull, from that, with a few connections at once.
    """

    model_id: str
    revision: str
    commit_sha: str
    licence: str
    gated: bool
    scan: str
    remote_code: tuple[str, ...]
    pickled: bool
    refused: str
    release_uri: str
    staging_uri: str
    already_published: bool
    files: tuple[PlannedFile, ...]
    size_bytes: int
    move_bytes: int
    transfer: TransferEstimate
    bytes_per_second: float
    seconds: float

    def as_json(self) -> str:
        """Return the plan for programs."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)


def plan_pull(
    *,
    model_id: str,
    revision: str = "main",
    release_root: str,
    staging_uri: str = "",
    token: str | None = None,
    allowed_licences: Sequence[str] = (),
    allow_remote_code: bool = False,
    memory_bytes: int = MEMORY_BYTES,
    workers: int = WORKERS,
    patience: Patience | None = None,
) -> PullPlan:
    """Find out what pull_model would do with the same arguments, moving at most a few small files and 8 MiB.

    Raises:
        HubError: the model cannot be had.
        NoWeightsError: there is nothing to serve.
    """
    token = hub_token(token)
    repository = read_repository(model_id, revision, token=token, patience=patience)
    layout = ModelLayout(release_root, repository.model_id, repository.commit_sha)
    pull = Pull(repository, token, patience)
    selection = select_files(repository, pull.read_small)
    remote_code = find_remote_code(selection, pull.read_small)
    staging_uri = staging_uri or layout.snapshot_uri
    published = find_release(layout.release_uri) is not None
    files = _planned_files(selection, layout, staging_uri, published=published)
    move_bytes = sum(file.size_bytes for file in files if file.state == "to be moved")
    speed = _measure(pull, selection, files)
    return PullPlan(
        model_id=repository.model_id,
        revision=revision,
        commit_sha=repository.commit_sha,
        licence=repository.licence,
        gated=repository.gated,
        scan=_scan(repository, selection),
        remote_code=remote_code,
        pickled=selection.pickled,
        refused=_refused(repository, selection, allowed_licences, remote_code, allow_remote_code=allow_remote_code),
        release_uri=layout.release_uri,
        staging_uri=staging_uri,
        already_published=published,
        files=files,
        size_bytes=selection.size_bytes,
        move_bytes=move_bytes,
        transfer=estimate_transfer(
            [file.size_bytes for file in files if file.state == "to be moved"],
            memory_bytes=memory_bytes,
            workers=workers,
        ),
        bytes_per_second=speed,
        seconds=_seconds(move_bytes, speed, workers),
    )


def _planned_files(
    selection: Selection, layout: ModelLayout, staging_uri: str, *, published: bool
) -> tuple[PlannedFile, ...]:
    elsewhere = find_published_files(layout)
    staged = {file.uri: file.size_bytes for file in list_files(staging_uri)}
    planned = []
    for file in selection.files:
        state = "to be moved"
        if published:
            state = "published"
        elif file.sha256 in elsewhere:
            state = "in another release"
        elif staged.get(join(staging_uri, file.path)) == file.size_bytes:
            state = "in staging"
        planned.append(PlannedFile(path=file.path, size_bytes=file.size_bytes, state=state))
    return tuple(planned)


def _scan(repository: Repository, selection: Selection) -> str:
    flagged = flagged_files(repository, selection)
    if flagged:
        return f"complaints about {', '.join(flagged)}"
    return "no complaint" if repository.scan_done else "not finished"


def _refused(
    repository: Repository,
    selection: Selection,
    allowed_licences: Sequence[str],
    remote_code: Sequence[str],
    *,
    allow_remote_code: bool,
) -> str:
    try:
        judge(
            repository,
            selection,
            allowed_licences=allowed_licences,
            allow_remote_code=allow_remote_code,
            remote_code=remote_code,
        )
    except PolicyError as error:
        return error.problem
    return ""


def _measure(pull: Pull, selection: Selection, files: Sequence[PlannedFile]) -> float:
    """Return the speed of one connection to the largest file that would be moved."""
    wanted = {file.path for file in files if file.state == "to be moved"}
    largest = max((file for file in selection.weights if file.path in wanted), key=lambda f: f.size_bytes, default=None)
    if largest is None or not largest.size_bytes:
        return 0.0
    reader = pull.open(largest)
    reader.read(0, 1)  # connections and redirects are made once, and are no measure of speed
    length = min(_PROBE_BYTES, largest.size_bytes)
    began = time.monotonic()
    reader.read(0, length)
    return length / max(1e-6, time.monotonic() - began)


def _seconds(move_bytes: int, speed: float, workers: int) -> float:
    """Estimate: connections share a line, so more of them help less and less."""
    return move_bytes / (speed * math.sqrt(workers)) if speed else 0.0
