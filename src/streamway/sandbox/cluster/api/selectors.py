"""Label and field selectors, which lists, watches, Services, budgets and controllers all share."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from streamway.sandbox.cluster.api.kinds import Kind
from streamway.sandbox.cluster.api.statuses import bad_request
from streamway.sandbox.cluster.objects import Object, dig

Labels = Mapping[str, str]
LabelTest = Callable[[Labels], bool]
ObjectTest = Callable[[Object], bool]

_SET_BASED = re.compile(r"^\s*(\S+?)\s+(in|notin)\s*\(([^)]*)\)\s*$")
_EQUALITY = re.compile(r"^\s*([^\s=!]+)\s*(==|!=|=)\s*([^\s=!]*)\s*$")
_PRESENCE = re.compile(r"^\s*(!?)\s*([^\s=!(),]+)\s*$")
_COMMA_OUTSIDE_BRACKETS = re.compile(r",(?![^()]*\))")

_FIELDS_OF_ALL = ("metadata.name", "metadata.namespace")
_EVENT_FIELDS = (
    "involvedObject.apiVersion",
    "involvedObject.fieldPath",
    "involvedObject.kind",
    "involvedObject.name",
    "involvedObject.namespace",
    "involvedObject.resourceVersion",
    "involvedObject.uid",
    "reason",
    "reportingComponent",
    "source",
    "type",
)
_FIELDS = {
    "pods": (
        "spec.hostNetwork",
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "status.nominatedNodeName",
        "status.phase",
        "status.podIP",
    ),
    "events": _EVENT_FIELDS,
    "namespaces": ("status.phase",),
    "nodes": ("spec.unschedulable",),
    "secrets": ("type",),
    "replicasets": ("status.replicas",),
    "services": ("spec.clusterIP", "spec.type"),
}


def parse_labels(text: str) -> LabelTest:
    """Read a label selector as clients write it: a=b, a!=b, a in (b,c), a notin (b), a, !a, joined by commas.

    Raises:
        ApiError: 400 for text that is no selector.
    """
    tests = [_label_test(part) for part in _COMMA_OUTSIDE_BRACKETS.split(text) if part.strip()]
    return lambda labels: all(test(labels) for test in tests)


def _label_test(part: str) -> LabelTest:
    if match := _SET_BASED.match(part):
        key, operator, listed = match.groups()
        return _requirement(key, operator, {value.strip() for value in listed.split(",")})
    if match := _EQUALITY.match(part):
        key, operator, value = match.groups()
        return _requirement(key, "notin" if operator == "!=" else "in", {value})
    if match := _PRESENCE.match(part):
        absent, key = match.groups()
        return _requirement(key, "absent" if absent else "exists", set())
    raise bad_request(f"unable to parse requirement: invalid selector {part!r}")


def _requirement(key: str, operator: str, values: set[str]) -> LabelTest:
    if operator == "in":
        return lambda labels: labels.get(key) in values
    if operator == "notin":
        return lambda labels: labels.get(key) not in values
    if operator == "exists":
        return lambda labels: key in labels
    if operator == "absent":
        return lambda labels: key not in labels
    raise ValueError(f"{operator!r} is not an operator of label selectors")


_OPERATORS = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "absent"}


def match_selector(selector: Object | None) -> LabelTest:
    """Turn a metav1.LabelSelector into a test. A missing selector matches nothing, an empty one everything."""
    if selector is None:
        return lambda _: False
    tests = [_requirement(key, "in", {value}) for key, value in dig(selector, "matchLabels", default={}).items()]
    for expression in dig(selector, "matchExpressions", default=[]):
        operator = _OPERATORS[expression["operator"]]
        tests.append(_requirement(expression["key"], operator, set(expression.get("values") or ())))
    return lambda labels: all(test(labels) for test in tests)


def match_labels(wanted: Labels) -> LabelTest:
    """Turn plain equalities, such as a Service's selector, into a test."""
    return lambda labels: all(labels.get(key) == value for key, value in wanted.items())


def parse_fields(kind: Kind, text: str) -> ObjectTest:
    """Read a field selector, such as status.phase!=Running,spec.nodeName=node-1.

    Raises:
        ApiError: 400 for a field that the kind cannot be selected by.
    """
    tests = [_field_test(kind, part) for part in text.split(",") if part.strip()]
    return lambda item: all(test(item) for test in tests)


def _field_test(kind: Kind, part: str) -> ObjectTest:
    match = _EQUALITY.match(part)
    if match is None:
        raise bad_request(f"invalid field selector: {part!r}")
    field, operator, wanted = match.groups()
    if field not in _FIELDS_OF_ALL and field not in _FIELDS.get(kind.plural, ()):
        raise bad_request(
            f'Unable to find "{kind.plural}" that match label selector "", field selector '
            f'"{part}": field label not supported: {field}'
        )
    path = ("source", "component") if field == "source" else tuple(field.split("."))
    equal = operator != "!="
    return lambda item: (_written(dig(item, *path)) == wanted) is equal


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)
