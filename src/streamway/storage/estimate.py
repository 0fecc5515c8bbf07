"""How many parts, requests and bytes of memory a transfer takes, computed beforehand and held to the limits.

Requests are counted as Cloud Storage charges them: class A writes and lists, class B reads, deletions are free
(https://cloud.google.com/storage/pricing#operations-by-class).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from streamway.storage.target_objects import SAVE_SLOTS
from streamway.storage.transfer import MEMORY_BYTES, WORKERS, choose_part_bytes


@dataclass(frozen=True, kw_only=True)
class TransferEstimate:
    """What moving some files from the Hub to Cloud Storage takes, without retries.

    Args:
        part_bytes: Size of a part.
        parts: In all.
        most_parts_of_a_file: Against the limit of 10 000.
        hub_requests: One to find each file, one for each part.
        class_a_requests: At most: uploads begun and completed, parts, saved progress, lists.
        class_b_requests: Looks at what is there.
        free_requests: At most: deletions of saved progress.
        memory_bytes: For bytes in flight.
    """

    part_bytes: int
    parts: int
    most_parts_of_a_file: int
    hub_requests: int
    class_a_requests: int
    class_b_requests: int
    free_requests: int
    memory_bytes: int


def estimate_transfer(
    sizes: Sequence[int], *, memory_bytes: int = MEMORY_BYTES, workers: int = WORKERS
) -> TransferEstimate:
    """Compute what moving files of these sizes takes.

    Args:
        sizes: Of each file, in bytes.
        memory_bytes: As for write_files.
        workers: As for write_files.

    Raises:
        TransferError: a file is beyond what Cloud Storage or the memory allows.
    """
    part_bytes = choose_part_bytes(sizes, memory_bytes=memory_bytes, workers=workers)
    parts = [max(1, -(-size // part_bytes)) for size in sizes]
    large = [count for count in parts if count > 1]
    small_count = len(parts) - len(large)
    # For a large file: list saved progress before and after, begin, complete; every part, and after every part but the
    # last its saved progress.
    class_a = small_count + sum(4 + count + count - 1 for count in large)
    return TransferEstimate(
        part_bytes=part_bytes,
        parts=sum(parts),
        most_parts_of_a_file=max(parts, default=0),
        hub_requests=sum(parts) + len(sizes),
        class_a_requests=class_a,
        class_b_requests=small_count + 2 * len(large),
        free_requests=sum(min(SAVE_SLOTS, count - 1) for count in large),
        memory_bytes=min(memory_bytes // part_bytes, workers, sum(parts)) * part_bytes,
    )
