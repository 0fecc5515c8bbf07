"""Following models: a new commit starts one run, once, however many watchers look.

The lock is an object in the bucket, `.watch/<namespace>/<endpoint>/<org>/<name>/<revision>/<commit>.json`, created on
the condition that there is none. Who creates it starts the run; everybody else leaves the commit alone. A watcher that
dies between the two leaves a claim that grows old, and then another one takes it over. The run has an id that follows
from the commit, so a claim that changes hands still starts one run. A branch that is set back to an earlier commit is
followed too.
"""

import json
import logging
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta

from streamway import storage
from streamway.errors import AlreadyThereError, LaunchError, SourceChangedError, StorageError, StreamwayError
from streamway.hub.newest import Newest, find_newest
from streamway.launch.service import PipelineService, RunRequest, RunStatus

logger = logging.getLogger("streamway.launch")

UNCHANGED, STARTED, TAKEN, FAILED = "unchanged", "started", "taken", "failed"

_CLAIM_LASTS = timedelta(minutes=10)
"""Submitting takes seconds; who has not written down a run by then is gone."""

_LONGEST_PAUSE_SECONDS = 3600.0
_MAX_RECORD_BYTES = 1 << 16
_MOST_READS = 10


@dataclass(frozen=True, kw_only=True)
class Followed:
    """A model to follow.

    Args:
        model_id: Hugging Face model id.
        revision: Branch or tag.
        name: Name of its endpoint.
        namespace: Kubernetes namespace of it.
    """

    model_id: str
    revision: str
    name: str
    namespace: str

    def __str__(self) -> str:
        return f"{self.model_id}@{self.revision}"


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look at a model led to.

    Args:
        followed: The model.
        outcome: "unchanged", "started", "taken" by another watcher, or "failed".
        commit_sha: Its newest commit; empty where the Hub did not say.
        run: Id of the run; empty for none.
        page: Where a person looks at that run.
        error: What went wrong, and what to do; empty otherwise.
    """

    followed: Followed
    outcome: str
    commit_sha: str = ""
    run: str = ""
    page: str = ""
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class _Claim:
    """Who starts the run of a commit.

    Args:
        commit_sha: The commit.
        model_id: Its model.
        revision: What was followed.
        owner: A watcher, named uniquely.
        claimed: When, RFC 3339.
        attempt: How often this commit has become the newest one; a branch may be set back to it.
        run: Id of the run, once it has been started.
        page: Its page.
    """

    commit_sha: str
    model_id: str
    revision: str
    owner: str
    claimed: str
    attempt: int = 1
    run: str = ""
    page: str = ""

    @property
    def is_stale(self) -> bool:
        return not self.run and datetime.now(UTC) - datetime.fromisoformat(self.claimed) > _CLAIM_LASTS


class Watcher:
    """Looks at models and starts runs.

    Args:
        state_root: Where claims and what was seen last are kept: the root of the releases.
        start: Starts the run of a model, a commit and an attempt, or finds the one that another watcher has started
            under the same id.
        token: The Hub's token; the environment's by default.
    """

    def __init__(
        self, *, state_root: str, start: Callable[[Followed, str, int], RunStatus], token: str | None = None
    ) -> None:
        self._root = storage.join(state_root, ".watch")
        self._start = start
        self._token = token
        self._owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"

    def look(self, followed: Followed) -> Look:
        """Look at a model once; errors become part of what is returned."""
        try:
            return self._look(followed)
        except StreamwayError as error:
            logger.warning("%s: %s", followed, error.problem)
            return Look(followed=followed, outcome=FAILED, error=str(error).replace("\nNext: ", " Next: "))

    def _look(self, followed: Followed) -> Look:
        seen = self._seen(followed)
        newest = find_newest(followed.model_id, followed.revision, token=self._token, known=seen)
        look = self._take_up(followed, newest.commit_sha, seen)
        # Only now: a watcher that dies before this looks again, and finds the claim.
        if newest != seen and look.outcome in (STARTED, UNCHANGED):
            storage.write_file(self._place(followed, "seen.json"), json.dumps(asdict(newest)).encode())
        return look

    def _take_up(self, followed: Followed, commit_sha: str, seen: Newest | None) -> Look:
        uri = self._place(followed, f"{commit_sha}.json")
        claim, generation = _read_claim(uri)
        came_back = claim is not None and self._came_back(followed, claim, seen)
        if claim and claim.run and not came_back:
            return Look(followed=followed, outcome=UNCHANGED, commit_sha=commit_sha, run=claim.run, page=claim.page)
        taken = Look(followed=followed, outcome=TAKEN, commit_sha=commit_sha)
        if claim and not came_back and not claim.is_stale:
            return taken
        mine = _Claim(
            commit_sha=commit_sha,
            model_id=followed.model_id,
            revision=followed.revision,
            owner=self._owner,
            claimed=datetime.now(UTC).isoformat(),
            attempt=claim.attempt + int(came_back) if claim else 1,
        )
        try:
            held = storage.write_file(uri, _to_json(mine), if_generation=generation)
        except storage.PreconditionFailedError:
            return taken
        return self._start_run(followed, mine, uri, held.generation)

    def _came_back(self, followed: Followed, claim: _Claim, seen: Newest | None) -> bool:
        """Tell whether the branch went on to another commit after this claim, and then back."""
        if not claim.run or seen is None or seen.commit_sha == claim.commit_sha:
            return False
        later, _ = _read_claim(self._place(followed, f"{seen.commit_sha}.json"))
        return later is not None and later.claimed > claim.claimed

    def _start_run(self, followed: Followed, mine: _Claim, uri: str, generation: int) -> Look:
        logger.info("%s has the new commit %s", followed, mine.commit_sha[:12])
        try:
            run = self._start(followed, mine.commit_sha, mine.attempt)
        except LaunchError:
            # The next look, by whomever, tries again.
            storage.delete_files([uri])
            raise
        started = replace(mine, run=run.id, page=run.page)
        storage.write_file(uri, _to_json(started), if_generation=generation or None)
        return Look(followed=followed, outcome=STARTED, commit_sha=mine.commit_sha, run=run.id, page=run.page)

    def _place(self, followed: Followed, name: str) -> str:
        revision = followed.revision.replace("/", "+")
        return storage.join(self._root, followed.namespace, followed.name, followed.model_id, revision, name)

    def _seen(self, followed: Followed) -> Newest | None:
        uri = self._place(followed, "seen.json")
        if not storage.exists(uri):
            return None
        try:
            return Newest(**json.loads(storage.read_file(uri, max_bytes=_MAX_RECORD_BYTES)))
        except (ValueError, TypeError, SourceChangedError):
            # It only saves the Hub an answer.
            return None


def starter(
    service: PipelineService, make_request: Callable[[Followed, str], RunRequest]
) -> Callable[[Followed, str, int], RunStatus]:
    """Return what starts the run of a commit on a service: once, under an id that follows from the request.

    Args:
        service: Where runs are started.
        make_request: Makes the request for a model and its commit.
    """

    def start(followed: Followed, commit_sha: str, attempt: int) -> RunStatus:
        request = make_request(followed, commit_sha)
        run_id = f"{request.stem}-{attempt}"
        try:
            return service.create_run(request, run_id)
        except AlreadyThereError:
            found = service.find_run(run_id)
            if found is None:
                raise
            return found

    return start


def watch(
    watcher: Watcher,
    followed: Sequence[Followed],
    *,
    interval_seconds: float,
    stop: threading.Event,
    on_look: Callable[[Look], None],
) -> None:
    """Look at every model again and again, until told to stop.

    Looks are spread at random, and a model that cannot be looked at is asked for less and less often, up to once an
    hour.

    Args:
        watcher: Who looks.
        followed: The models.
        interval_seconds: Time between two looks at one model.
        stop: Ends it.
        on_look: Called after each look.
    """
    failures = dict.fromkeys(followed, 0)
    due = {model: time.monotonic() for model in followed}
    while not stop.is_set():
        model = min(due, key=lambda one: due[one])
        if stop.wait(max(0.0, due[model] - time.monotonic())):
            return
        look = watcher.look(model)
        on_look(look)
        failures[model] = failures[model] + 1 if look.outcome == FAILED else 0
        pause = min(interval_seconds * 2 ** min(failures[model], 16), max(_LONGEST_PAUSE_SECONDS, interval_seconds))
        due[model] = time.monotonic() + pause * random.uniform(0.8, 1.2)


def look_until(watcher: Watcher, followed: Followed, commit_sha: str, *, pauses: Sequence[float]) -> Look:
    """Look after a webhook has told of a commit; the Hub's API may know of it a little later.

    Args:
        watcher: Who looks.
        followed: The model.
        commit_sha: The commit that was told of; empty for any.
        pauses: Seconds before each further look.
    """
    look = watcher.look(followed)
    for pause in pauses:
        if look.outcome != FAILED and commit_sha in ("", look.commit_sha):
            break
        time.sleep(pause)
        look = watcher.look(followed)
    return look


def _read_claim(uri: str) -> tuple[_Claim | None, int]:
    """Return the claim and its generation; 0 where there is none."""
    for _ in range(_MOST_READS):
        if not storage.exists(uri):
            return None, 0
        # Another watcher may write, or take back, its claim at this very moment.
        try:
            reader = storage.open_reader(uri)
            text = reader.read(0, min(reader.size_bytes, _MAX_RECORD_BYTES))
        except SourceChangedError:
            continue
        except StorageError:
            if storage.exists(uri):
                raise
            return None, 0
        return _parse_claim(text, uri), int(reader.version) if storage.is_gs(uri) else -1
    raise LaunchError(f"{uri} is written to all the time.", next_step="Look who does; one watcher is enough.")


def _parse_claim(text: bytes, uri: str) -> _Claim:
    try:
        return _Claim(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise LaunchError(
            f"{uri} is not a claim that this version can read: {error}.", next_step="Delete it; the commit is taken up."
        ) from error


def _to_json(claim: _Claim) -> bytes:
    return json.dumps(asdict(claim), indent=1, sort_keys=True).encode()
