"""A pod's status, put together from what its containers do."""

from collections.abc import Sequence

from streamway.sandbox.cluster.node.containers import Container
from streamway.sandbox.cluster.objects import Object, clone, dig, set_condition

HOST_ADDRESS = "127.0.0.1"


def is_sidecar(container: Object) -> bool:
    """Tell whether an init container goes on running beside the main ones."""
    return container.get("restartPolicy") == "Always"


def pod_phase(inits: Sequence[Container], mains: Sequence[Container], *, initialized: bool, done: bool) -> str:
    """Give a pod's phase.

    Args:
        inits: Its init containers.
        mains: Its main containers.
        initialized: Whether all init containers are through.
        done: Whether nothing will run again.
    """
    if done:
        relevant = mains if initialized else inits
        failed = any(dig(one.state, "terminated", "exitCode", default=0) for one in relevant)
        return "Failed" if failed else "Succeeded"
    never_started = any("waiting" in one.state and not one.last_state for one in mains)
    return "Pending" if not initialized or never_started else "Running"


def pod_status(
    before: Object,
    address: str,
    began: str,
    inits: Sequence[Container],
    mains: Sequence[Container],
    *,
    initialized: bool,
    done: bool,
    generation: int,
) -> Object:
    """Write a pod's status.

    Args:
        before: The status as it is.
        address: The pod's address, empty before it has one.
        began: When the node took the pod on.
        inits: Its init containers.
        mains: Its main containers.
        initialized: Whether all init containers are through.
        done: Whether nothing will run again.
        generation: The pod's generation.
    """
    status: Object = clone(before)
    status["phase"] = pod_phase(inits, mains, initialized=initialized, done=done)
    status["observedGeneration"] = generation
    status["startTime"] = before.get("startTime") or began
    status["hostIP"], status["hostIPs"] = HOST_ADDRESS, [{"ip": HOST_ADDRESS}]
    if address:
        status["podIP"], status["podIPs"] = address, [{"ip": address}]
    status["containerStatuses"] = [clone(one.status()) for one in mains]
    if inits:
        status["initContainerStatuses"] = [_init_status(one) for one in inits]
    _set_conditions(status, address, inits, mains, initialized=initialized, done=done)
    return status


def _init_status(container: Container) -> Object:
    status: Object = clone(container.status())
    terminated = container.state.get("terminated")
    status["ready"] = container.ready or (terminated is not None and terminated["exitCode"] == 0)
    return status


def _set_conditions(
    status: Object,
    address: str,
    inits: Sequence[Container],
    mains: Sequence[Container],
    *,
    initialized: bool,
    done: bool,
) -> None:
    set_condition(status, {"type": "PodReadyToStartContainers", "status": "True" if address else "False"})
    if initialized:
        set_condition(status, {"type": "Initialized", "status": "True"})
    else:
        waiting = [one.name for one in inits if dig(one.state, "terminated", "exitCode") != 0]
        condition = {"type": "Initialized", "status": "False", "reason": "ContainersNotInitialized"}
        text = f"containers with incomplete status: [{' '.join(waiting)}]"
        set_condition(status, {**condition, "message": text})
    unready = [one.name for one in mains if not one.ready]
    for kind in ("Ready", "ContainersReady"):
        if done and status["phase"] == "Succeeded":
            set_condition(status, {"type": kind, "status": "False", "reason": "PodCompleted"})
        elif unready:
            text = f"containers with unready status: [{' '.join(unready)}]"
            set_condition(status, {"type": kind, "status": "False", "reason": "ContainersNotReady", "message": text})
        else:
            set_condition(status, {"type": kind, "status": "True"})
