"""The name formats of Kubernetes and the words in which a real API server refuses a bad one."""

import re
from typing import Any

from streamway.sandbox.cluster.api.kinds import NAMESPACE, SERVICE, Kind
from streamway.sandbox.cluster.api.statuses import Cause, invalid
from streamway.sandbox.cluster.objects import Object, annotations_of, dig, labels_of, name_of

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DNS_LABEL = re.compile(rf"^{_LABEL}$")
_DNS_SUBDOMAIN = re.compile(rf"^{_LABEL}(\.{_LABEL})*$")
_DNS_1035 = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
_QUALIFIED = re.compile(r"^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$")
_PORT_NAME = re.compile(r"^(?=.*[a-z])(?!.*--)[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?$")
_ENVIRONMENT_NAME = re.compile(r"^[^=\x00-\x1f\x7f-\uffff]+$")
_PATH_SEGMENT_KINDS = frozenset(("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"))

_DNS_LABEL_RULE = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end"
    " with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is"
    " '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_DNS_SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start"
    " and end with an alphanumeric character (e.g. 'example.com', regex used for validation is"
    " '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_DNS_1035_RULE = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character,"
    " and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is"
    " '[a-z]([-a-z0-9]*[a-z0-9])?')"
)
_LABEL_VALUE_RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and"
    " end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is"
    " '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
_QUALIFIED_RULE = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric"
    " character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is"
    " '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)


def check_metadata(kind: Kind, item: Object) -> list[Cause]:
    """Check an object's name, labels and annotations."""
    causes = check_name(kind, name_of(item))
    causes += check_labels("metadata.labels", labels_of(item))
    causes += _keys("metadata.annotations", annotations_of(item))
    total = sum(len(key) + len(str(value)) for key, value in annotations_of(item).items())
    if total > 262144:
        causes.append(
            Cause(
                reason="FieldValueTooLong",
                field="metadata.annotations",
                message="Too long: may not be more than 262144 bytes",
            )
        )
    return causes


def check_name(kind: Kind, name: str) -> list[Cause]:
    """Check an object's name by the rule of its kind."""
    if kind is SERVICE:
        return _matches("metadata.name", name, _DNS_1035, _DNS_1035_RULE, 63)
    if kind is NAMESPACE:
        return check_dns_label("metadata.name", name)
    if kind.name in _PATH_SEGMENT_KINDS:
        bad = name in (".", "..") or "/" in name or "%" in name
        return [invalid("metadata.name", name, "may not contain '/' or '%'")] if bad else []
    return check_dns_subdomain("metadata.name", name)


def check_dns_label(field: str, name: str) -> list[Cause]:
    """Check a name of up to 63 characters without dots."""
    return _matches(field, name, _DNS_LABEL, _DNS_LABEL_RULE, 63)


def check_dns_subdomain(field: str, name: str) -> list[Cause]:
    """Check a name of up to 253 characters."""
    return _matches(field, name, _DNS_SUBDOMAIN, _DNS_SUBDOMAIN_RULE, 253)


def _matches(field: str, value: str, pattern: re.Pattern[str], rule: str, longest: int) -> list[Cause]:
    causes = []
    if len(value) > longest:
        causes.append(invalid(field, value, f"must be no more than {longest} characters"))
    if not pattern.match(value):
        causes.append(invalid(field, value, rule))
    return causes


def check_labels(field: str, labels: dict[str, Any]) -> list[Cause]:
    """Check label keys and values."""
    causes = _keys(field, labels)
    for value in labels.values():
        if len(value) > 63:
            causes.append(invalid(field, value, "must be no more than 63 characters"))
        if value and not _QUALIFIED.match(value):
            causes.append(invalid(field, value, _LABEL_VALUE_RULE))
    return causes


def _keys(field: str, pairs: dict[str, Any]) -> list[Cause]:
    causes = []
    for key in pairs:
        prefix, slash, name = key.rpartition("/")
        if slash and not _DNS_SUBDOMAIN.match(prefix):
            causes.append(invalid(field, key, "prefix part " + _DNS_SUBDOMAIN_RULE))
        if not name:
            causes.append(invalid(field, key, "name part must be non-empty"))
        elif len(name) > 63:
            causes.append(invalid(field, key, "name part must be no more than 63 characters"))
        elif not _QUALIFIED.match(name):
            causes.append(invalid(field, key, _QUALIFIED_RULE))
    return causes


def check_port_name(field: str, name: str) -> list[Cause]:
    """Check the name of a container's port."""
    if len(name) > 15:
        return [invalid(field, name, "must be no more than 15 characters")]
    if not _PORT_NAME.match(name):
        rule = "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"
        return [invalid(field, name, rule)]
    return []


def check_environment_name(field: str, name: str) -> list[Cause]:
    """Check the name of an environment variable."""
    if _ENVIRONMENT_NAME.match(name):
        return []
    return [
        invalid(
            field,
            name,
            "a valid environment variable name must consist only of printable ASCII characters other than '='",
        )
    ]


def template_metadata(item: Object) -> Object:
    """Give a template's metadata."""
    found: Object = dig(item, "spec", "template", "metadata", default={})
    return found
