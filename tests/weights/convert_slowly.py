"""Run in a process of its own, to be killed: convert SOURCE into TARGET with little memory, and tell the outcome."""

import json
import sys

from streamway.weights import convert_weights

source, target = sys.argv[1:3]
converted = convert_weights(snapshot_uri=source, weights_uri=target, shard_bytes=30_000_000, memory_bytes=11 << 20)
print(json.dumps({"moved": converted.moved_bytes, "tensors": converted.tensors}))
