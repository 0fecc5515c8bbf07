"""What somebody wants a pod to have, in Kubernetes' own words, where it shall not follow from the model's size."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from streamway.errors import SettingsError
from streamway.server.accelerators import find_accelerator
from streamway.server.spec import Resources, check_resources, check_startup

# https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
_QUANTITY = re.compile(
    r"(?P<number>\d+(\.\d*)?|\.\d+)((?P<suffix>[KMGTPE]i|[numkMGTPE])|[eE](?P<exponent>[+-]?\d{1,2}))?"
)
_SUFFIXES = {
    **{
        suffix: Decimal(10) ** power
        for suffix, power in zip("numkMGTPE", (-9, -6, -3, 3, 6, 9, 12, 15, 18), strict=True)
    },
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", start=1)},
}
_MIB = 1024**2
_TIB = 1024**4
_MOST_STARTUP_SECONDS = 86_400


@dataclass(frozen=True, kw_only=True)
class _Amount:
    """One amount that may be asked for.

    Args:
        least: Less than this is a mistake, such as a unit that was left out.
        most: So is more.
        example: How to write it.
        meant: The least, for people.
    """

    least: Decimal
    most: Decimal
    example: str
    meant: str


_AMOUNTS = {
    # A core in milli-units is how Kubernetes counts; memory and disk below this hold no engine.
    "cpu": _Amount(least=Decimal("0.1"), most=Decimal(1024), example="8 or 7500m", meant="0.1 to 1024 cores"),
    "memory": _Amount(least=Decimal(512 * _MIB), most=Decimal(64 * _TIB), example="64Gi", meant="512Mi to 64Ti"),
    "ephemeral_storage": _Amount(
        least=Decimal(512 * _MIB), most=Decimal(64 * _TIB), example="20Gi", meant="512Mi to 64Ti"
    ),
}
_STARTUP = "startup_seconds"


@dataclass(frozen=True, kw_only=True)
class Pod:
    """What is asked of a pod; 0 wherever it follows from the model's size.

    Args:
        resources: CPU, memory and local disk.
        startup_seconds: Longest time from container start to the first healthy answer.
    """

    resources: Resources
    startup_seconds: int


def read_pod(wanted: Mapping[str, Any]) -> Pod:
    """Read what somebody has written about a pod.

    Args:
        wanted: `cpu`, `memory` and `ephemeral_storage` as Kubernetes writes quantities, and `startup_seconds`; each may
            be left out, empty or 0.

    Raises:
        SettingsError: one of them is not known, is no quantity, or cannot be meant.
    """
    known = (*_AMOUNTS, _STARTUP)
    for name in wanted:
        if name not in known:
            raise SettingsError(
                f"pod has {name!r}, expected {', '.join(known)}.",
                next_step="Correct the name; GPUs are gpu_count, and what a node must be is node_selector.",
            )
    amounts = {name: _read_amount(name, wanted.get(name)) for name in _AMOUNTS}
    return Pod(
        resources=Resources(
            cpus=float(amounts["cpu"]),
            memory_bytes=int(amounts["memory"]),
            ephemeral_bytes=int(amounts["ephemeral_storage"]),
        ),
        startup_seconds=_read_startup(wanted.get(_STARTUP)),
    )


def check_pod(wanted: Mapping[str, Any], *, accelerator: str, timeout_seconds: float) -> None:
    """Judge what somebody has written about a pod, against the machines that there are and the time that it has.

    Args:
        wanted: As in `read_pod`.
        accelerator: GKE's name of the accelerator.
        timeout_seconds: Longest wait for a rollout; 0 derives it.

    Raises:
        SettingsError: it cannot be read, or cannot be had.
    """
    pod = read_pod(wanted)
    check_resources(pod.resources, find_accelerator(accelerator))
    check_startup(pod.startup_seconds, timeout_seconds)


def _read_amount(name: str, value: object) -> Decimal:
    if value is None or value in ("", 0):
        return Decimal(0)
    amount, rule = _read_quantity(value), _AMOUNTS[name]
    if amount is None:
        raise SettingsError(
            f"pod has {name} {value!r}, expected a quantity as Kubernetes writes it, such as {rule.example}.",
            next_step="Correct it, or leave it out to derive it from the size of the model.",
        )
    if not rule.least <= amount <= rule.most:
        raise SettingsError(
            f"pod has {name} {value!r}, expected {rule.meant}.",
            next_step=f"Write its unit too, such as {rule.example}, or leave it out to derive it.",
        )
    return amount


def _read_quantity(value: object) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    match = _QUANTITY.fullmatch(str(value))
    if match is None:
        return None
    if match["exponent"]:
        return Decimal(match["number"]) * Decimal(10) ** int(match["exponent"])
    return Decimal(match["number"]) * _SUFFIXES.get(match["suffix"], Decimal(1))


def _read_startup(value: object) -> int:
    if value is None or value in ("", 0):
        return 0
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    if not (whole and isinstance(value, int | float) and 1 <= value <= _MOST_STARTUP_SECONDS):
        raise SettingsError(
            f"pod has {_STARTUP} {value!r}, expected a whole number of seconds, 1 to {_MOST_STARTUP_SECONDS}.",
            next_step="Leave it out to derive it from the size of the model.",
        )
    return int(value)
