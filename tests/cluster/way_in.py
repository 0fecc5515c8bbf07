"""A process of its own on its way to a cluster: says where it got to, then each object that its watch sees.

python way_in.py CLUSTER [FOLDER], where FOLDER is what a pod has mounted for its service account.
"""

import sys

from kubernetes.config import incluster_config

from streamway.cluster import connect
from streamway.errors import StreamwayError
from streamway.server.watch import LiveView, Source

PATH = "/api/v1/namespaces/default/configmaps"


def follow(cluster: str) -> None:
    connection = connect(cluster)
    sys.stdout.write(f"{connection.address}\n")
    with LiveView(connection, {"maps": Source(path=PATH)}) as view:
        seen, told = 0, set[str]()
        while True:
            seen = view.wait(seen, timeout_seconds=1)
            names = {item["metadata"]["name"] for item in view.objects("maps")}
            for name in sorted(names - told):
                sys.stdout.write(f"{name}\n")
            told |= names
            sys.stdout.flush()


if __name__ == "__main__":
    if len(sys.argv) > 2:
        incluster_config.SERVICE_TOKEN_FILENAME = f"{sys.argv[2]}/token"
        incluster_config.SERVICE_CERT_FILENAME = f"{sys.argv[2]}/ca.crt"
    try:
        follow(sys.argv[1])
    except StreamwayError as error:
        sys.stdout.write(f"{type(error).__name__}: {error.problem} {error.next_step}\n")
        sys.exit(error.exit_code)
