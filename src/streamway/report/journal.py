"""The journal of a run: one JSON object for each step, beside the releases.

A pipeline's exit handler is told only that "a task failed", and its tasks run on different machines. So each step
writes what it did, how long it took and why it failed to `<run_uri>/<step>.json`; the report and the command line
read it there, and it works the same on Vertex AI, on Kubeflow and on one machine.
"""

import contextlib
import dataclasses
import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Self

from streamway import storage
from streamway.errors import StreamwayError
from streamway.interrupts import terminated_like_interrupt

STEPS = ("pull_model", "convert_weights", "upload_model", "enable_cache", "deploy_server", "smoke_test")
"""The six steps of serving a model."""

PROMOTION_STEPS = ("promote_release", "enable_cache", "deploy_server", "smoke_test")
RETIREMENT_STEPS = ("plan_retirement", "retire_server", "retire_releases", "retire_cache")
CHECK_STEP = "check_parameters"
GATE_STEP = "record_passage"
KNOWN_STEPS = tuple(dict.fromkeys((CHECK_STEP, *STEPS, *PROMOTION_STEPS, *RETIREMENT_STEPS, GATE_STEP)))

FORMAT_VERSION = 1
MAX_RECORD_BYTES = 4 << 20
_MOST_ENTRIES = 500
"""Of a list or a mapping in a record that would otherwise be too long to be read again."""
_MOST_CHARACTERS = 10_000

LINE_PREFIX = "streamway"
"""First word of every line a step narrates; the local runner finds them among a pipeline runner's own lines."""

STARTED, SUCCEEDED, FAILED = "started", "succeeded", "failed"
"""First words of the lines that mark a step's beginning and end; SUCCEEDED is followed by its seconds, FAILED by
its error as JSON."""

RUNNING = "running"
"""Status of a step that has not ended; the other two are the words above."""

PROGRESS_INTERVAL_SECONDS = 5.0
logger = logging.getLogger("streamway.report")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What one step did.

    Args:
        name: The component, such as `pull_model`.
        status: "succeeded" or "failed"; "running" until then, which stays where the step's worker is killed.
        started: UTC time in ISO 8601.
        seconds: How long it took.
        result: What the step returned, as plain JSON.
        error: Kind, message, next step and exit code of a failure; empty on success.
        shortened: Whether the result was too long to be kept whole.
        format_version: Of this record.
    """

    name: str
    status: str
    started: str
    seconds: float
    result: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: dict[str, Any] = dataclasses.field(default_factory=dict)
    shortened: bool = False
    format_version: int = FORMAT_VERSION

    @classmethod
    def from_json(cls, text: str | bytes, *, name: str = "") -> Self:
        """Read a record; what another version has added is left out.

        Args:
            text: The record.
            name: The step it must be of; empty for any.

        Raises:
            ValueError: it is none, and says in which way.
        """
        found = _json_object(text)
        if found.get("status") not in (SUCCEEDED, FAILED, RUNNING):
            raise ValueError(f"its status is {str(found.get('status'))[:40]!r}, expected 'succeeded' or 'failed'")
        if name and found.get("name") != name:
            raise ValueError(f"it is the record of {str(found.get('name'))[:40]!r}")
        known = {field.name for field in dataclasses.fields(cls)}
        record = cls(**{key: value for key, value in found.items() if key in known})
        record._check_types()
        return record

    def _check_types(self) -> None:
        kinds: dict[str, type | tuple[type, ...]] = {
            "name": str,
            "started": str,
            "seconds": (int, float),
            "result": dict,
            "error": dict,
        }
        for field, kind in kinds.items():
            value = getattr(self, field)
            if not isinstance(value, kind):
                raise ValueError(f"its {field} is of type {type(value).__name__}")
        if not 0 <= self.seconds < float("inf"):
            raise ValueError(f"it took {self.seconds} seconds")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True)


def _json_object(text: str | bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({str(error)[:80]})") from error
    if not isinstance(found, dict):
        raise ValueError(f"it is a JSON {type(found).__name__}, expected an object")
    missing = [key for key in ("name", "status", "started", "seconds") if key not in found]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnreadableRecord:
    """A step's record that is there and says nothing.

    Args:
        name: The step.
        reason: What is wrong with it.
    """

    name: str
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunJournal:
    """All that a run has written so far, in the order of the steps.

    Args:
        run_uri: Its folder.
        records: Steps that have ended.
        unreadable: What is there and could not be read.
        unfinished: Steps that have begun and not ended: they are at work, or their worker was killed.
    """

    run_uri: str
    records: tuple[StepRecord, ...]
    unreadable: tuple[UnreadableRecord, ...] = ()
    unfinished: tuple[StepRecord, ...] = ()

    @classmethod
    def load(cls, run_uri: str) -> Self:
        """Read every step's record under `run_uri`.

        Raises:
            StreamwayError: the folder cannot be listed, such as one in a bucket that is not there.
        """
        sizes = {file.path: file.size_bytes for file in storage.list_files(run_uri)}
        read = [_read(run_uri, name, sizes[f"{name}.json"]) for name in KNOWN_STEPS if f"{name}.json" in sizes]
        known = [record for record in read if isinstance(record, StepRecord)]
        return cls(
            run_uri=run_uri,
            records=tuple(record for record in known if record.status != RUNNING),
            unfinished=tuple(record for record in known if record.status == RUNNING),
            unreadable=tuple(record for record in read if isinstance(record, UnreadableRecord)),
        )

    @property
    def failed(self) -> StepRecord | None:
        return next((record for record in self.records if record.status != "succeeded"), None)

    @property
    def name(self) -> str:
        """The run's own name."""
        return self.run_uri.rstrip("/").rpartition("/")[2]

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that a run of this kind has, whether they ran or not."""
        seen = {record.name for record in (*self.records, *self.unfinished)}
        seen |= {record.name for record in self.unreadable}
        steps: tuple[str, ...]
        if "promote_release" in seen or (not seen and self.name.startswith("promote-")):
            steps = PROMOTION_STEPS
        elif seen & set(RETIREMENT_STEPS) or (not seen and self.name.startswith("retire-")):
            steps = RETIREMENT_STEPS
        else:
            steps = STEPS
        refused = self.failed is not None and self.failed.name == CHECK_STEP
        return (*([CHECK_STEP] if refused else []), *steps, *([GATE_STEP] if GATE_STEP in seen else []))

    def record(self, name: str) -> StepRecord | None:
        return next((record for record in self.records if record.name == name), None)


def _read(run_uri: str, name: str, size_bytes: int) -> StepRecord | UnreadableRecord:
    if size_bytes > MAX_RECORD_BYTES:
        return UnreadableRecord(name=name, reason=f"it is {size_bytes:,} bytes long, at most {MAX_RECORD_BYTES:,}")
    try:
        text = storage.read_file(storage.join(run_uri, f"{name}.json"), max_bytes=MAX_RECORD_BYTES)
        return StepRecord.from_json(text, name=name)
    except (ValueError, StreamwayError, OSError) as error:
        return UnreadableRecord(name=name, reason=str(error).splitlines()[0])


class Step:
    """One running step: keeps its result, and narrates its progress."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.result: dict[str, Any] = {}
        self._spoke = time.monotonic()
        self._began = self._spoke
        self._lock = threading.Lock()

    def keep(self, result: Any) -> None:
        """Keep the step's result for the report; a dataclass, turned into plain JSON."""
        self.result = plain(result)

    def progress(self, done_bytes: int, total_bytes: int) -> None:
        """Say how far a long transfer has come, at most once every five seconds."""
        now = time.monotonic()
        with self._lock:
            if now - self._spoke < PROGRESS_INTERVAL_SECONDS:
                return
            self._spoke = now
        rate = done_bytes / max(now - self._began, 1e-6) / 2**20
        share = 100 * done_bytes / total_bytes if total_bytes else 100.0
        logger.info("%.0f%%: %.1f of %.1f MiB, %.0f MiB/s", share, done_bytes / 2**20, total_bytes / 2**20, rate)


def plain(value: Any) -> Any:
    """Turn a result into what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


@contextlib.contextmanager
def step(name: str, run_uri: str) -> Iterator[Step]:
    """Run one step of a pipeline: narrate on stderr, answer SIGTERM, and write the journal at the end.

    Args:
        name: The component's name.
        run_uri: Folder of this run's journal; "" writes none.

    Raises:
        StreamwayError: whatever the step raised, after it was written down.
    """
    started = datetime.now(UTC).isoformat(timespec="milliseconds")
    running = Step(name)
    with _narration(name), terminated_like_interrupt():
        began = time.monotonic()
        logger.info("%s", STARTED)
        # Should the worker be killed, this is all that the step leaves.
        _write(StepRecord(name=name, status=RUNNING, started=started, seconds=0.0), run_uri)
        try:
            yield running
        except BaseException as error:
            failure = _describe(error)
            report = getattr(error, "report", None)
            record = StepRecord(
                name=name,
                status="failed",
                started=started,
                seconds=round(time.monotonic() - began, 3),
                result=running.result or (plain(report) if report is not None else {}),
                error=failure,
            )
            logger.error("%s %s", FAILED, json.dumps(failure))
            _write(record, run_uri)
            raise
        record = StepRecord(
            name=name,
            status="succeeded",
            started=started,
            seconds=round(time.monotonic() - began, 3),
            result=running.result,
        )
        _write(record, run_uri)
        logger.info("%s %.1f", SUCCEEDED, record.seconds)


def _describe(error: BaseException) -> dict[str, Any]:
    if isinstance(error, StreamwayError):
        return {
            "kind": type(error).__name__,
            "problem": error.problem,
            "next_step": error.next_step,
            "exit_code": error.exit_code,
        }
    if isinstance(error, KeyboardInterrupt):
        return {
            "kind": "Interrupted",
            "problem": "The step was interrupted.",
            "next_step": "Run the same command again: it goes on where it stopped.",
            "exit_code": 130,
        }
    return {
        "kind": type(error).__name__,
        "problem": f"{type(error).__name__}: {error}",
        "next_step": "This is a defect of Streamway; the traceback in the log says where.",
        "exit_code": 1,
    }


def _write(record: StepRecord, run_uri: str) -> None:
    if not run_uri:
        return
    try:
        storage.write_file(storage.join(run_uri, f"{record.name}.json"), _bounded_json(record))
    except (StreamwayError, OSError) as error:
        # The step's own outcome matters more than its journal, and a bucket that is missing fails both.
        logger.warning("the journal of %s could not be written: %s", record.name, str(error).splitlines()[0])


def _bounded_json(record: StepRecord) -> bytes:
    """Write a record so that it can be read again: a model may have a hundred thousand tensors, each with its proof."""
    whole = record.to_json().encode()
    if len(whole) <= MAX_RECORD_BYTES:
        return whole
    return (
        dataclasses.replace(record, result=_shorten(record.result), error=_shorten(record.error), shortened=True)
        .to_json()
        .encode()
    )


def _shorten(value: Any) -> Any:
    if isinstance(value, dict):
        return {key[:_MOST_CHARACTERS]: _shorten(entry) for key, entry in list(value.items())[:_MOST_ENTRIES]}
    if isinstance(value, list):
        return [_shorten(entry) for entry in value[:_MOST_ENTRIES]]
    return value[:_MOST_CHARACTERS] if isinstance(value, str) else value


@contextlib.contextmanager
def _narration(name: str) -> Iterator[None]:
    """Send the lines of every room to stderr as `streamway <step> | <text>`."""
    root = logging.getLogger("streamway")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"{LINE_PREFIX} {name} | %(message)s"))
    before = (root.level, root.propagate)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    root.propagate = False
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.level, root.propagate = before
