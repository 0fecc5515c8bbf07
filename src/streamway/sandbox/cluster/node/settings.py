"""What the sandbox's machines are like."""

from dataclasses import dataclass, replace

from streamway.sandbox.cluster.objects import Object

# Allocatable figures of a GKE g2-standard-16 node (16 vCPU, 64 GiB, one L4): what the system keeps is taken off.
_CPU, _CPU_FREE = "16", "15890m"
_MEMORY, _MEMORY_FREE = "65843192Ki", "59467768Ki"
_STORAGE, _STORAGE_FREE = "98831908Ki", "47060071478"


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """The nodes and how they behave.

    Args:
        count: How many nodes there are.
        gpus: Accelerators of each node.
        accelerator: GKE's name of the accelerator.
        zone: Compute Engine zone.
        machine_type: Compute Engine machine type.
        backoff_seconds: First wait before a crashed container or a failed pull is tried again; it doubles.
        longest_backoff_seconds: The longest such wait.
        memory_sample_seconds: How often memory is compared with its limit.
        shutdown_seconds: How long containers are given when the cluster itself stops.
    """

    count: int = 1
    gpus: int = 1
    accelerator: str = "nvidia-l4"
    zone: str = "us-central1-a"
    machine_type: str = "g2-standard-16"
    backoff_seconds: float = 10.0
    longest_backoff_seconds: float = 300.0
    memory_sample_seconds: float = 1.0
    shutdown_seconds: float = 3.0

    def changed(self, wanted: Object) -> "NodeSettings":
        """Give settings with some values replaced.

        Raises:
            TypeError: for a name that is no setting.
        """
        return replace(self, **wanted)

    @property
    def region(self) -> str:
        return self.zone.rpartition("-")[0]

    def capacity(self) -> dict[str, str]:
        """Give what a node has."""
        return self._resources(_CPU, _MEMORY, _STORAGE)

    def allocatable(self) -> dict[str, str]:
        """Give what a node has for pods."""
        return self._resources(_CPU_FREE, _MEMORY_FREE, _STORAGE_FREE)

    def _resources(self, cpu: str, memory: str, storage: str) -> dict[str, str]:
        return {
            "cpu": cpu,
            "ephemeral-storage": storage,
            "hugepages-2Mi": "0",
            "memory": memory,
            "nvidia.com/gpu": str(self.gpus),
            "pods": "110",
        }


def node_name(settings: NodeSettings, index: int) -> str:
    """Name a node as GKE does."""
    return f"gke-sandbox-{settings.accelerator.removeprefix('nvidia-')}-pool-{index:04d}"


def node_object(settings: NodeSettings, index: int) -> Object:
    """Describe a node, labelled as GKE labels one with an accelerator."""
    name = node_name(settings, index)
    labels = {
        "beta.kubernetes.io/arch": "amd64",
        "beta.kubernetes.io/instance-type": settings.machine_type,
        "beta.kubernetes.io/os": "linux",
        "cloud.google.com/gke-accelerator": settings.accelerator,
        "cloud.google.com/gke-accelerator-count": str(settings.gpus),
        "cloud.google.com/gke-container-runtime": "containerd",
        "cloud.google.com/gke-nodepool": f"{settings.accelerator.removeprefix('nvidia-')}-pool",
        "cloud.google.com/gke-os-distribution": "cos",
        "cloud.google.com/gke-provisioning": "standard",
        "cloud.google.com/machine-family": settings.machine_type.partition("-")[0],
        "failure-domain.beta.kubernetes.io/region": settings.region,
        "failure-domain.beta.kubernetes.io/zone": settings.zone,
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "node.kubernetes.io/instance-type": settings.machine_type,
        "topology.gke.io/zone": settings.zone,
        "topology.kubernetes.io/region": settings.region,
        "topology.kubernetes.io/zone": settings.zone,
    }
    taints = [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}] if settings.gpus else []
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "podCIDR": f"10.{100 + index}.0.0/24",
            "podCIDRs": [f"10.{100 + index}.0.0/24"],
            "providerID": f"gce://sandbox/{settings.zone}/{name}",
            "taints": taints,
        },
    }
