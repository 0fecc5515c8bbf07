"""A node's status as the kubelet reports it."""

import platform

from streamway.sandbox.cluster.api.discovery import GIT_VERSION
from streamway.sandbox.cluster.node.settings import NodeSettings
from streamway.sandbox.cluster.objects import Object, timestamp

_CONDITIONS = (
    ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
)


def node_status(settings: NodeSettings, name: str) -> Object:
    """Describe a healthy node.

    Args:
        settings: What the node is like.
        name: Its name.
    """
    stamp = timestamp()
    return {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": name}],
        "allocatable": settings.allocatable(),
        "capacity": settings.capacity(),
        "conditions": [
            {
                "type": kind,
                "status": value,
                "reason": reason,
                "message": message,
                "lastHeartbeatTime": stamp,
                "lastTransitionTime": stamp,
            }
            for kind, value, reason, message in _CONDITIONS
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        "nodeInfo": {
            "architecture": "amd64",
            "bootID": "",
            "containerRuntimeVersion": "containerd://2.1.0",
            "kernelVersion": platform.release(),
            "kubeProxyVersion": GIT_VERSION,
            "kubeletVersion": GIT_VERSION,
            "machineID": "",
            "operatingSystem": "linux",
            "osImage": "Container-Optimized OS from Google (stand-in)",
            "systemUUID": "",
        },
    }
