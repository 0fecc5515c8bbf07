"""How long a rollout may take, nested so that the innermost limit speaks first, and scaled with the model.

The startup probe must give up before the Deployment's progress deadline, and that before our own wait: otherwise a
server that is merely slow is reported by whichever limit happens to fire.
"""

import math
from dataclasses import dataclass

GIB = 1024**3

# Imports, compilation, warm-up and graph capture took 160 s on an H100; a CPU or a small GPU takes longer.
_ENGINE_SECONDS = 420
# A cold bucket behind one small node; a cached zone is ten times faster.
_SLOWEST_GIB_PER_SECOND = 0.25
# A node that has to be created first, with its driver, and a 10 GB image to pull.
_NODE_AND_IMAGE_SECONDS = 1200
_MARGIN_SECONDS = 60
# Probing is cheap, and a longer period is so much waiting added to every start.
PROBE_PERIOD_SECONDS = 1


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """Limits of one rollout, each inside the next.

    Args:
        startup_seconds: From container start to the first healthy answer.
        progress_seconds: From one sign of progress to the next, as Kubernetes counts it.
        step_seconds: The whole wait.
    """

    startup_seconds: int
    progress_seconds: int
    step_seconds: int

    @property
    def startup_failures(self) -> int:
        """Failed startup probes that are allowed before the container is restarted."""
        return max(1, math.ceil(self.startup_seconds / PROBE_PERIOD_SECONDS))


def derive_budgets(size_bytes: int, timeout_seconds: float = 0, startup_seconds: float = 0) -> Budgets:
    """Derive the limits from a model's bytes, or fit them into a given whole.

    Args:
        size_bytes: Bytes of the release.
        timeout_seconds: The whole wait; 0 derives it.
        startup_seconds: From container start to the first healthy answer; 0 derives it.
    """
    startup = startup_seconds or _ENGINE_SECONDS + size_bytes / GIB / _SLOWEST_GIB_PER_SECOND
    if timeout_seconds:
        # The startup probe stays what the model's size says: it is part of the pod, and a caller with less patience
        # must not cause a rollout.
        step = max(3.0, timeout_seconds)
        progress = step - min(_MARGIN_SECONDS, step * 0.1)
    else:
        progress = startup + _NODE_AND_IMAGE_SECONDS
        step = progress + _MARGIN_SECONDS
    return Budgets(
        startup_seconds=max(1, math.floor(startup)),
        progress_seconds=max(2, math.floor(progress)),
        step_seconds=math.ceil(step),
    )
