"""Where pods may run and as whom, checked before anything is applied.

The API server takes most mistakes here without a word: a zone or a label that no node can have, an operator
that does not exist. They would be found out when no node took the pod, after minutes, with the model moved for nothing.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from streamway.errors import SettingsError

# https://kubernetes.io/docs/concepts/overview/working-with-objects/names and .../labels
_ACCOUNT = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LABEL_PREFIX = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LABEL_WORD = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_MODEL_NAME = re.compile(r"[^\s\x00-\x1f\x7f]{1,256}")
_TOLERATION = ("key", "operator", "value", "effect", "tolerationSeconds")
_OPERATORS = ("Exists", "Equal")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute", "")


def check_placement(
    *,
    zone: str,
    service_account: str,
    served_model_name: str,
    node_selector: Mapping[str, str],
    tolerations: Sequence[Mapping[str, Any]],
) -> None:
    """Refuse what Kubernetes would take and nothing would fit.

    Raises:
        SettingsError: names the setting, and what is wrong with it.
    """
    # Not only Google's: a cluster elsewhere names its zones as it likes.
    if zone and not _LABEL_WORD.fullmatch(zone):
        raise SettingsError(
            f"zone is {zone!r}, which no node's label can say; expected a name such as us-central1-a.",
            next_step="Choose a zone of the cluster, or leave it empty for any.",
        )
    if service_account and not _ACCOUNT.fullmatch(service_account):
        raise SettingsError(
            f"service_account is {service_account!r}, which is no name of a Kubernetes service account; expected "
            "lower-case letters, digits, dashes and dots.",
            next_step="Give its name in the cluster, not its Google account; empty makes one named as the endpoint.",
        )
    if served_model_name and not _MODEL_NAME.fullmatch(served_model_name):
        raise SettingsError(
            f"served_model_name is {served_model_name!r}, expected at most 256 characters without spaces.",
            next_step="Leave it empty for the Hugging Face id.",
        )
    for label, value in node_selector.items():
        _check_label(label, value)
    for number, toleration in enumerate(tolerations, start=1):
        _check_toleration(toleration, number)


def plain_toleration(toleration: Mapping[str, Any]) -> dict[str, Any]:
    """Return a toleration as Kubernetes reads it; whole numbers that came through KFP are floats."""
    seconds = toleration.get("tolerationSeconds")
    return dict(toleration) | ({} if seconds is None else {"tolerationSeconds": int(seconds)})


def _check_label(label: Any, value: Any) -> None:
    prefix, slash, word = str(label).rpartition("/")
    named = _LABEL_WORD.fullmatch(word) and (_LABEL_PREFIX.fullmatch(prefix) if slash else True)
    if not named or not isinstance(value, str) or not (value == "" or _LABEL_WORD.fullmatch(value)):
        raise SettingsError(
            f"node_selector has {label!r}: {value!r}, which no node can have; expected a label's name and a text.",
            next_step="Write it as `kubectl get nodes --show-labels` shows it, with the value in quotes.",
        )


def _check_toleration(toleration: Any, number: int) -> None:
    if not isinstance(toleration, Mapping) or not toleration:
        raise SettingsError(
            f"Entry {number} of tolerations is {toleration!r}, expected a mapping with a key.",
            next_step='Write it like {"key": "team", "operator": "Equal", "value": "a", "effect": "NoSchedule"}.',
        )
    allowed = {"operator": _OPERATORS, "effect": _EFFECTS}
    wrong = [name for name in toleration if name not in _TOLERATION]
    wrong += [name for name, values in allowed.items() if toleration.get(name, values[-1]) not in values]
    seconds = toleration.get("tolerationSeconds", 0)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds != int(seconds):
        wrong.append("tolerationSeconds")
    if not toleration.get("key") and toleration.get("operator") != "Exists":
        wrong.append("key")
    if wrong:
        raise SettingsError(
            f"Entry {number} of tolerations has {wrong[0]} {toleration.get(wrong[0])!r}; expected key, operator "
            f"({' or '.join(_OPERATORS)}), value, effect ({', '.join(_EFFECTS[:-1])}) and whole tolerationSeconds.",
            next_step="Write it as a pod's specification would have it.",
        )
