"""How large a release will be, before it is made: its pods' limits, and so its revision's name, follow from that."""

from streamway.storage.records import OpenLeft, Snapshot
from streamway.weights.folders import sort_folder
from streamway.weights.plans import plan_conversion
from streamway.weights.shards import DEFAULT_SHARD_BYTES
from streamway.weights.sources import source_at_hub


def planned_bytes(snapshot: Snapshot, *, open_left: OpenLeft) -> int:
    """Compute how many bytes a release will have, from headers and pickles alone.

    Args:
        snapshot: The model, with every file where it lies at the Hub.
        open_left: Opens the files there.

    Raises:
        UnsafePickleError, CheckpointError, SafetensorsError: it could not be converted.
        HubError: it cannot be read.
    """
    source = source_at_hub(snapshot, open_left)
    folder = sort_folder(source)
    plan = plan_conversion(source, folder, shard_bytes=DEFAULT_SHARD_BYTES)
    kept = [*(file for _, file in plan.kept), *folder.companions]
    made = sum(shard.size_bytes for shard in plan.shards) + len(plan.index or b"")
    return made + sum(file.size_bytes for file in kept)
