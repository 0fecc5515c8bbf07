"""python -m streamway.sandbox.cluster: the sandbox's Kubernetes cluster as a process of its own."""

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from streamway.errors import SandboxError
from streamway.sandbox.cluster.node.settings import NodeSettings
from streamway.sandbox.cluster.serving import ClusterOptions, run_cluster
from streamway.sandbox.processes import die_with_parent


def main() -> None:
    """Read the command line and run until told to stop."""
    defaults = NodeSettings()
    parser = argparse.ArgumentParser(prog="python -m streamway.sandbox.cluster", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="folder of the sandbox's state")
    parser.add_argument("--port", type=int, default=0, help="port of the API server; 0 for a free one")
    parser.add_argument("--images", type=Path, help="JSON table of images and their environments")
    parser.add_argument("--nodes", type=int, default=defaults.count, help="number of nodes")
    parser.add_argument("--gpus", type=int, default=defaults.gpus, help="accelerators of each node")
    parser.add_argument("--zone", default=defaults.zone, help="zone of the nodes")
    parser.add_argument(
        "--backoff-seconds", type=float, default=defaults.backoff_seconds, help="first wait after a crash"
    )
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    die_with_parent()
    node = NodeSettings(count=given.nodes, gpus=given.gpus, zone=given.zone, backoff_seconds=given.backoff_seconds)
    options = ClusterOptions(state=given.state.absolute(), port=given.port, images=given.images, node=node)
    try:
        asyncio.run(run_cluster(options))
    except SandboxError as error:
        logging.getLogger("streamway.sandbox.cluster").error("%s", error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
