"""Nobody grants more than they have: what stands in the way of an account that makes itself an administrator.

As in https://kubernetes.io/docs/reference/access-authn-authz/rbac/#privilege-escalation-prevention-and-bootstrapping:
who writes a role must have all of its rights, or the verb `escalate`; who binds one, all of them or the verb `bind`.
"""

import json
from collections.abc import Iterator

from streamway.sandbox.cluster.api.access import Attributes, permits, role_rules, rules_for
from streamway.sandbox.cluster.api.caller import MASTERS, User
from streamway.sandbox.cluster.api.kinds import CLUSTER_ROLE, CLUSTER_ROLE_BINDING, ROLE, ROLE_BINDING, Kind
from streamway.sandbox.cluster.api.statuses import forbidden
from streamway.sandbox.cluster.api.store import Store
from streamway.sandbox.cluster.objects import Object, name_of

_ROLES = (ROLE, CLUSTER_ROLE)
_BINDINGS = (ROLE_BINDING, CLUSTER_ROLE_BINDING)


def check_grant(store: Store, user: User, kind: Kind, namespace: str, item: Object) -> None:
    """Refuse a role or a binding that grants what its author has not.

    Raises:
        ApiError: 403 with the rules that are too much.
    """
    if kind not in (*_ROLES, *_BINDINGS) or MASTERS in user.groups:
        return
    own = list(rules_for(store, user, namespace))
    if kind in _ROLES:
        granted, exempt = item.get("rules") or [], _attributes(kind, namespace, "escalate", name_of(item))
    else:
        reference = item["roleRef"]
        role = CLUSTER_ROLE if reference["kind"] == "ClusterRole" else ROLE
        granted = role_rules(store, reference, namespace)
        exempt = _attributes(role, namespace, "bind", reference["name"])
    if any(permits(rule, exempt) for rule in own):
        return
    beyond = [rule for rule in granted if not all(_has(own, wanted) for wanted in _single(rule, namespace))]
    if beyond:
        groups = " ".join(json.dumps(group) for group in user.groups)
        listed = "\n".join(map(_shown, beyond))
        why = f'user "{user.name}" (groups=[{groups}]) is attempting to grant RBAC permissions not currently held:'
        raise forbidden(kind, name_of(item), f"{why}\n{listed}")


def _attributes(kind: Kind, namespace: str, verb: str, name: str) -> Attributes:
    return Attributes(verb=verb, group=kind.group, resource=kind.plural, namespace=namespace, name=name)


def _has(own: list[Object], wanted: Attributes) -> bool:
    return any(permits(rule, wanted) for rule in own)


def _single(rule: Object, namespace: str) -> Iterator[Attributes]:
    """Take a rule apart into the single things that it allows."""
    for verb in rule.get("verbs") or ():
        for path in rule.get("nonResourceURLs") or ():
            yield Attributes(verb=verb, path=path)
        for group in rule.get("apiGroups") or ():
            for resource in rule.get("resources") or ():
                for name in rule.get("resourceNames") or ("",):
                    yield Attributes(verb=verb, group=group, resource=resource, namespace=namespace, name=name)


def _shown(rule: Object) -> str:
    names = {
        "APIGroups": "apiGroups",
        "Resources": "resources",
        "ResourceNames": "resourceNames",
        "NonResourceURLs": "nonResourceURLs",
        "Verbs": "verbs",
    }
    parts = [
        f"{shown}:[{' '.join(json.dumps(value) for value in rule[key])}]"
        for shown, key in names.items()
        if rule.get(key)
    ]
    return f"{{{', '.join(parts)}}}"
