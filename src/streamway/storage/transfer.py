"""The one engine that moves bytes: parts of files, read from anywhere, checked, and written to disk or a bucket.

Workers take parts in the order of the files; each reads its part into memory that it owns, writes it to the target,
and hands it to the file's checksums, which take parts in order. A part that comes too early waits, and its memory with
it, until it is counted and put down where a kill leaves it: that bounds both what is held and what a kill can lose, to
one part for each worker.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from streamway.errors import ChecksumError, StreamwayError, TransferError
from streamway.storage.addresses import is_gs
from streamway.storage.cloud import LEAST_PART_BYTES, MOST_OBJECT_BYTES, MOST_PARTS, cloud_storage
from streamway.storage.digests import Checksums
from streamway.storage.http import Patience
from streamway.storage.passing import PassingHash
from streamway.storage.rows import Gaps, SegmentedSource
from streamway.storage.segments import Extent, FilePlan, Progress, WrittenFile
from streamway.storage.target_local import LocalTarget
from streamway.storage.target_objects import SmallObjectTarget, UploadTarget
from streamway.storage.targets import Target

MIB = 1024 * 1024
MEMORY_BYTES = 256 * MIB
WORKERS = 8
PART_BYTES = 32 * MIB
LOCAL_PART_BYTES = 2 * MIB
"""Between disks a small part stays in the processor's cache until it is written and read back, and one that is read,
written and compared in one call each waits least for Python's lock (docs/transfer.md)."""
_PROGRESS_SECONDS = 0.25
_LAST_WORDS_SECONDS = 8.0


def write_files(
    plans: Sequence[FilePlan],
    *,
    memory_bytes: int = MEMORY_BYTES,
    workers: int = WORKERS,
    sha256: bool = True,
    read_back: bool = False,
    on_progress: Progress | None = None,
    patience: Patience | None = None,
) -> tuple[WrittenFile, ...]:
    """Write files from their segments, in parallel within a file and across files.

    Nothing appears under its final name before all of it is there and its checksums are right. What an earlier,
    interrupted call left is taken up; files that are already complete move nothing.

    Args:
        plans: What to write.
        memory_bytes: Most memory for bytes in flight.
        workers: Most parts on their way at once.
        sha256: Whether to compute SHA-256 where a plan promises none.
        read_back: Whether to read again what was written to disk, and compare. Cloud Storage does so by itself.
        on_progress: Called with (bytes done, bytes in all).
        patience: How long to wait for Cloud Storage.

    Returns:
        One WrittenFile for each plan, in the same order.

    Raises:
        ChecksumError: bytes are not what was promised; what was written of that file is thrown away.
        TransferError: bytes could not be moved.
        StorageError: a target refuses.
    """
    object_sizes = (plan.size_bytes for plan in plans if is_gs(plan.uri))
    part_bytes = choose_part_bytes(object_sizes, memory_bytes=memory_bytes, workers=workers)
    jobs = [_make_job(plan, patience, sha256=sha256, read_back=read_back, part_bytes=part_bytes) for plan in plans]
    if all(not is_gs(plan.uri) and _is_local(plan) for plan in plans):
        workers = min(workers, os.cpu_count() or 1)  # more only stand in each other's way
    at_once = max(1, min(workers, memory_bytes // part_bytes))
    return _Crew(jobs, part_bytes=part_bytes, workers=at_once, on_progress=on_progress).run()


def choose_part_bytes(object_sizes: Iterable[int], *, memory_bytes: int, workers: int) -> int:
    """Return the size of a part: what memory allows, within what Cloud Storage demands.

    Args:
        object_sizes: Sizes of the files that go to Cloud Storage; disks have no limits to heed.
        memory_bytes: Most memory for bytes in flight.
        workers: Most parts on their way at once; fewer work where memory is short.

    Raises:
        TransferError: the largest file cannot be cut so that a part fits into memory, or is too large altogether.
    """
    largest = max(object_sizes, default=0)
    if largest > MOST_OBJECT_BYTES:
        raise TransferError(
            f"A file of {largest} bytes cannot be an object: Cloud Storage takes at most {MOST_OBJECT_BYTES}.",
            next_step="Choose smaller shards.",
        )
    part_bytes = max(LEAST_PART_BYTES, min(PART_BYTES, memory_bytes // max(1, workers) // MIB * MIB))
    part_bytes = max(part_bytes, -(-largest // (MOST_PARTS * MIB)) * MIB)
    if part_bytes > memory_bytes:
        raise TransferError(
            f"A part of {part_bytes // MIB} MiB does not fit into memory_bytes={memory_bytes}.",
            next_step=f"Allow at least {part_bytes} bytes of memory.",
        )
    return part_bytes


def _make_job(plan: FilePlan, patience: Patience | None, *, sha256: bool, read_back: bool, part_bytes: int) -> "_Job":
    """Choose how a file is written: to disk, in one request, or as a multipart upload."""
    target: Target
    if not is_gs(plan.uri):
        target = LocalTarget(plan, sha256=sha256, read_back=read_back)
        part_bytes = min(part_bytes, LOCAL_PART_BYTES) if _is_local(plan) else part_bytes
    elif plan.size_bytes <= part_bytes:
        target = SmallObjectTarget(plan, cloud_storage(patience), sha256=sha256)
    else:
        target = UploadTarget(plan, cloud_storage(patience), sha256=sha256)
    return _Job(plan, target, part_bytes)


def _is_local(plan: FilePlan) -> bool:
    """Tell whether everything comes from this machine, so that a part costs no request."""
    return not any(isinstance(segment, Extent) and "://" in segment.reader.uri for segment in plan.segments)


@dataclass
class _Part:
    job: "_Job"
    number: int
    buffer: bytearray

    @property
    def view(self) -> memoryview:
        return memoryview(self.buffer)[: self.job.part_length(self.number)]


@dataclass
class _Written:
    """A part that is where it goes, until its turn comes to be hashed.

    Args:
        part: With its bytes.
        checksum: Their crc32c.
        gaps: What came along with them of their source, where that is hashed too.
    """

    part: _Part
    checksum: int
    gaps: Gaps


class _Job:
    """One file under way."""

    def __init__(self, plan: FilePlan, target: Target, part_bytes: int) -> None:
        self.plan = plan
        self.target = target
        self.part_bytes = part_bytes
        self.result: WrittenFile | None = None
        self.taken = 0
        self.moved_bytes = 0
        # Parts that are settled, with their memory, until that is put down; both belong to the crew.
        self.unsaved: list[_Part] = []
        self.saving = False
        self._source = SegmentedSource(plan)
        self._checksums = Checksums(sha256=False)
        self._passing: PassingHash | None = None
        self._settled = 0
        self._early: dict[int, _Written] = {}
        self._settling = False
        self._lock = threading.Lock()

    @property
    def part_count(self) -> int:
        return max(1, -(-self.plan.size_bytes // self.part_bytes))

    def part_length(self, number: int) -> int:
        return min(self.part_bytes, self.plan.size_bytes - number * self.part_bytes)

    def begin(self, most_part_bytes: int) -> int:
        """Find out what is there already; return how many bytes of the file need nothing more."""
        self.result = self.target.find_complete()
        if self.result:
            self.taken = self.part_count
            return self.plan.size_bytes
        position = self.target.begin(self.part_bytes, most_part_bytes)
        self.part_bytes, self.taken = position.part_bytes, position.number
        self._settled, self._checksums, self._passing = position.number, position.checksums, position.source
        return min(self.plan.size_bytes, position.number * position.part_bytes)

    def move(self, part: _Part, on_settled: Callable[[_Part], None]) -> None:
        """Bring one part to its target and settle what can be settled, telling of each part that is."""
        gaps: Gaps = {}
        checksum = self.target.read_back(part.number, part.view)
        if checksum is None:
            filled = self._source.fill(part.number * self.part_bytes, part.view)
            gaps, checksum = filled.gaps, filled.checksum(part.view)
            self.target.write_part(part.number, part.view, checksum)
            with self._lock:
                self.moved_bytes += len(part.view)
        with self._lock:
            self._early[part.number] = _Written(part, checksum, gaps if self._passing else {})
            if self._settling:
                return
            self._settling = True
        while ready := self._next_in_order():
            self._settle(ready)
            on_settled(ready.part)

    def _settle(self, written: "_Written") -> None:
        part = written.part
        self._checksums.add(part.view, written.checksum)
        if self._passing:
            self._pass_by(self._passing, written)
        self.target.settle(part.number + 1, self._checksums, self._passing)
        if part.number + 1 == self.part_count:
            self._finish()

    def _pass_by(self, passing: PassingHash, written: "_Written") -> None:
        """Show the source's hash what a part has of it."""
        part = written.part
        offset = part.number * self.part_bytes
        begin, end = passing.within(offset, offset + len(part.view))
        for piece in self._source.pieces(begin, end - begin):
            at = begin - offset + piece.at
            passing.add(piece.start, part.view[at : at + piece.length], written.gaps)

    def _next_in_order(self) -> "_Written | None":
        """Take the next part to be settled; where it has not come yet, whoever brings it goes on."""
        with self._lock:
            ready = self._early.pop(self._settled, None)
            self._settled += ready is not None
            self._settling = ready is not None
            return ready

    def _finish(self) -> None:
        if self._passing:
            try:
                self._passing.finish()
            except ChecksumError:
                self.target.discard()
                raise
        found = self._checksums.sha256()
        if self.plan.sha256 and found != self.plan.sha256:
            self.target.discard()
            raise ChecksumError(
                f"{self.plan.uri}: its {self.plan.size_bytes} bytes have sha256 {found}, expected {self.plan.sha256}. "
                "Nothing of it was kept.",
                next_step="Run again; if it happens again, the source holds other bytes than it promises.",
            )
        self.result = self.target.finish(self._checksums, self.moved_bytes)


class _Crew:
    """The workers of one call, what they may use, and what became of it."""

    def __init__(self, jobs: Sequence[_Job], *, part_bytes: int, workers: int, on_progress: Progress | None) -> None:
        self._jobs = jobs
        # Of any number of files only a few are ever under way, so nobody looks through all of them for a part.
        self._unbegun = list(reversed(jobs))
        self._open: list[_Job] = []
        self._unsaved: list[_Job] = []
        self._part_bytes = part_bytes
        self._workers = workers
        self._buffers = [bytearray() for _ in range(workers)]
        self._state = threading.Condition()
        self._beginning = 0
        self._failure: BaseException | None = None
        self._stopped = False
        self._progress = _ProgressReport(on_progress, sum(job.plan.size_bytes for job in jobs))

    def run(self) -> tuple[WrittenFile, ...]:
        # Daemons, so that an interrupted process need not wait for a slow answer.
        threads = [
            threading.Thread(target=self._work, name=f"transfer-{index}", daemon=True)
            for index in range(min(self._workers, sum(job.part_count for job in self._jobs)))
        ]
        for thread in threads:
            thread.start()
        try:
            self._wait_for(threads)
        except BaseException:
            self._stop()
            raise
        if self._failure:
            raise self._failure
        self._progress.end()
        return tuple(job.result for job in self._jobs if job.result)

    def _wait_for(self, threads: Sequence[threading.Thread]) -> None:
        for thread in threads:
            while thread.is_alive() and not self._failure:
                thread.join(0.5)
        deadline = time.monotonic() + _LAST_WORDS_SECONDS
        for thread in threads:  # let the others save the part that they hold
            thread.join(max(0.0, deadline - time.monotonic()))
        if not any(thread.is_alive() for thread in threads):
            for job in self._jobs:
                job.target.leave()

    def _work(self) -> None:
        try:
            while part := self._take():
                part.job.move(part, self._settled)
        except BaseException as error:
            self._fail(error)
        finally:
            self._save_last()

    def _take(self) -> _Part | None:
        """Wait for memory and a part to use it for, saving what is settled; None when there is nothing left to do."""
        with self._state:
            while not self._stopped:
                if settled := next((job for job in self._unsaved if not job.saving), None):
                    self._save(settled)
                    continue
                job = self._open[0] if self._open else None
                if job and self._buffers:
                    number, job.taken = job.taken, job.taken + 1
                    if job.taken == job.part_count:
                        self._open.remove(job)
                    return _Part(job, number, self._sized(self._buffers.pop(), job.part_length(number)))
                if not job and self._unbegun:
                    self._begin(self._unbegun.pop())
                elif not job and not self._beginning:
                    return None
                else:
                    self._state.wait()
            return None

    def _begin(self, job: _Job) -> None:
        """Begin a file outside the lock, so that the others can work meanwhile."""
        self._beginning += 1
        self._state.release()
        try:
            done = job.begin(self._part_bytes)
        finally:
            self._state.acquire()
            self._beginning -= 1
        if job.taken < job.part_count:
            self._open.append(job)
        self._progress.add(done)
        self._state.notify_all()

    def _sized(self, buffer: bytearray, length: int) -> bytearray:
        # Small files must not cost whole parts; a buffer grows to the largest part that it ever held.
        return buffer if len(buffer) >= length else bytearray(length)

    def _settled(self, part: _Part) -> None:
        self._progress.add(len(part.view))
        with self._state:
            if not part.job.unsaved:
                self._unsaved.append(part.job)
            part.job.unsaved.append(part)
            self._state.notify_all()

    def _save(self, job: _Job) -> None:
        """Put down how far a file is, outside the lock, and free the memory of the parts that are safe then."""
        parts, job.unsaved, job.saving = job.unsaved, [], True
        self._unsaved.remove(job)
        self._state.release()
        try:
            job.target.save()
        finally:
            self._state.acquire()
            job.saving = False
            self._buffers += [part.buffer for part in parts]
            self._state.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._state:
            self._failure = self._failure or error
        self._stop()

    def _save_last(self) -> None:
        """Put down what was settled when the transfer had to stop; what stopped it is what must be told."""
        for job in self._jobs:
            if self._stopped and job.unsaved:
                with contextlib.suppress(StreamwayError):
                    job.target.save()

    def _stop(self) -> None:
        with self._state:
            self._stopped = True
            self._state.notify_all()


class _ProgressReport:
    def __init__(self, on_progress: Progress | None, total_bytes: int) -> None:
        self._on_progress = on_progress
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._told = 0.0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done_bytes += count
            if not self._on_progress or time.monotonic() - self._told < _PROGRESS_SECONDS:
                return
            self._told = time.monotonic()
            done = self._done_bytes
        self._on_progress(done, self._total_bytes)

    def end(self) -> None:
        if self._on_progress:
            self._on_progress(self._total_bytes, self._total_bytes)
