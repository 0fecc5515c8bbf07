"""What GKE's accelerators hold, so that nobody has to count GPUs for a model.

Figures: https://cloud.google.com/compute/docs/gpus and
https://cloud.google.com/compute/docs/accelerator-optimized-machines. Memory is what the driver reports, which is a
little less than the number on the box.
"""

from dataclasses import dataclass

from streamway.errors import SettingsError

GIB = 1024**3

# vLLM's own default for --gpu-memory-utilization; newer versions take 0.92.
USABLE_SHARE = 0.9
# Weights take a little more than their bytes on disk; activations, CUDA graphs and a first block of KV cache take
# this much on each GPU. gemma-2-9b (17.2 GiB) fits one L4 by this rule, as Google's guide shows it to do.
_WEIGHTS_FACTOR = 1.05
_OVERHEAD_GIB_PER_GPU = 1.5
# https://cloud.google.com/kubernetes-engine/docs/concepts/plan-node-sizes: GKE keeps a quarter of the first 4 GiB, a
# fifth of the next 4, a tenth of the next 8, and less of what is more than that.
_POD_MEMORY_SHARE = 0.85


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine type that carries the accelerator.

    Args:
        name: Compute Engine's name.
        gpus: How many it has.
        cpus: Its vCPUs.
        memory_gib: Its memory.
    """

    name: str
    gpus: int
    cpus: int
    memory_gib: int

    @property
    def pod_cpus(self) -> float:
        """Cores that one pod can have: GKE's own pods take a part of one."""
        return self.cpus - 0.5

    @property
    def pod_memory_bytes(self) -> int:
        """Memory that one pod can have, beside what the node keeps for itself."""
        return int(self.memory_gib * _POD_MEMORY_SHARE * GIB)


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One kind of GPU on GKE.

    Args:
        name: Value of the node label cloud.google.com/gke-accelerator.
        memory_gib: Memory of one GPU.
        machines: Machine types with it, smallest first.
    """

    name: str
    memory_gib: float
    machines: tuple[Machine, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """GPU counts that are whole nodes, smallest first: Autopilot gives large GPUs only by the node."""
        return tuple(sorted({machine.gpus for machine in self.machines}))


def _machines(*rows: tuple[str, int, int, int]) -> tuple[Machine, ...]:
    return tuple(Machine(name=name, gpus=gpus, cpus=cpus, memory_gib=gib) for name, gpus, cpus, gib in rows)


ACCELERATORS = {
    accelerator.name: accelerator
    for accelerator in (
        Accelerator(
            name="nvidia-tesla-t4",
            memory_gib=15.0,
            machines=_machines(
                ("n1-standard-8", 1, 8, 30), ("n1-standard-16", 2, 16, 60), ("n1-standard-32", 4, 32, 120)
            ),
        ),
        Accelerator(
            name="nvidia-l4",
            memory_gib=22.5,
            machines=_machines(
                ("g2-standard-8", 1, 8, 32),
                ("g2-standard-16", 1, 16, 64),
                ("g2-standard-24", 2, 24, 96),
                ("g2-standard-48", 4, 48, 192),
                ("g2-standard-96", 8, 96, 384),
            ),
        ),
        Accelerator(
            name="nvidia-rtx-pro-6000",
            memory_gib=95.0,
            machines=_machines(
                ("g4-standard-48", 1, 48, 180),
                ("g4-standard-96", 2, 96, 360),
                ("g4-standard-192", 4, 192, 720),
                ("g4-standard-384", 8, 384, 1440),
            ),
        ),
        Accelerator(
            name="nvidia-tesla-a100",
            memory_gib=39.5,
            machines=_machines(
                ("a2-highgpu-1g", 1, 12, 85),
                ("a2-highgpu-2g", 2, 24, 170),
                ("a2-highgpu-4g", 4, 48, 340),
                ("a2-highgpu-8g", 8, 96, 680),
                ("a2-megagpu-16g", 16, 96, 1360),
            ),
        ),
        Accelerator(
            name="nvidia-a100-80gb",
            memory_gib=79.2,
            machines=_machines(
                ("a2-ultragpu-1g", 1, 12, 170),
                ("a2-ultragpu-2g", 2, 24, 340),
                ("a2-ultragpu-4g", 4, 48, 680),
                ("a2-ultragpu-8g", 8, 96, 1360),
            ),
        ),
        Accelerator(
            name="nvidia-h100-80gb",
            memory_gib=79.6,
            machines=_machines(
                ("a3-highgpu-1g", 1, 26, 234),
                ("a3-highgpu-2g", 2, 52, 468),
                ("a3-highgpu-4g", 4, 104, 936),
                ("a3-highgpu-8g", 8, 208, 1872),
            ),
        ),
        Accelerator(
            name="nvidia-h100-mega-80gb",
            memory_gib=79.6,
            machines=_machines(("a3-megagpu-8g", 8, 208, 1872)),
        ),
        Accelerator(
            name="nvidia-h200-141gb",
            memory_gib=140.4,
            machines=_machines(("a3-ultragpu-8g", 8, 224, 2952)),
        ),
        Accelerator(
            name="nvidia-b200",
            memory_gib=178.3,
            machines=_machines(("a4-highgpu-8g", 8, 224, 3968)),
        ),
    )
}


def find_accelerator(name: str) -> Accelerator:
    """Look up an accelerator by GKE's name for it.

    Raises:
        SettingsError: the table has no such accelerator.
    """
    if name not in ACCELERATORS:
        raise SettingsError(
            f"accelerator is {name!r}, expected one of {', '.join(ACCELERATORS)}.",
            next_step="Use the value of the node label cloud.google.com/gke-accelerator; TPUs are not supported.",
        )
    return ACCELERATORS[name]


def derive_gpu_count(accelerator: Accelerator, size_bytes: int) -> int:
    """Smallest number of GPUs of one node that holds a model.

    Args:
        accelerator: The kind of GPU.
        size_bytes: Bytes of the release.

    Raises:
        SettingsError: no single node holds it.
    """
    for count in accelerator.counts:
        if fits(accelerator, count, size_bytes):
            return count
    largest = accelerator.counts[-1]
    raise SettingsError(
        f"The model has {size_bytes / GIB:.1f} GiB, more than one node with {accelerator.name} can hold: "
        f"{largest} x {accelerator.memory_gib:g} GiB, of which {USABLE_SHARE:.0%} are usable.",
        next_step="Choose an accelerator with more memory or a quantised model; "
        "serving across several nodes is not supported.",
    )


def fits(accelerator: Accelerator, gpu_count: int, size_bytes: int) -> bool:
    """Whether a model leaves room to answer on so many GPUs."""
    return room_beside_weights(accelerator, gpu_count, size_bytes) >= 0


def room_beside_weights(
    accelerator: Accelerator, gpu_count: int, size_bytes: int, *, usable_share: float = USABLE_SHARE
) -> float:
    """Bytes of each GPU that a model's weights and what the engine needs beside them leave for its KV cache.

    Args:
        accelerator: The kind of GPU.
        gpu_count: GPUs that the model is split over.
        size_bytes: Bytes of the release.
        usable_share: Share of the memory that the engine may take.
    """
    taken_gib = size_bytes / GIB * _WEIGHTS_FACTOR / gpu_count + _OVERHEAD_GIB_PER_GPU
    return (accelerator.memory_gib * usable_share - taken_gib) * GIB


def machines_with(accelerator: Accelerator, gpu_count: int) -> tuple[Machine, ...]:
    """Machine types that can give so many GPUs to one pod, smallest first."""
    return tuple(machine for machine in accelerator.machines if machine.gpus >= gpu_count)
