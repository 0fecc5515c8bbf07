"""Kinds that are questions: access reviews, `kubectl auth whoami`, tokens for service accounts, scales."""

from datetime import timedelta
from typing import Any

from streamway.sandbox.cluster.api.access import Access, requested_attributes
from streamway.sandbox.cluster.api.caller import Caller, User
from streamway.sandbox.cluster.api.kinds import SERVICE_ACCOUNT, Kind
from streamway.sandbox.cluster.api.registry import Registry
from streamway.sandbox.cluster.api.statuses import bad_request
from streamway.sandbox.cluster.objects import Object, clone, dig, now, timestamp

_DEFAULT_TOKEN_SECONDS = 3600


def answer(access: Access, kind: Kind, namespace: str, body: Object, caller: Caller) -> Object:
    """Answer a review.

    Args:
        access: Who may do what.
        kind: The kind of review.
        namespace: The namespace of a local review.
        body: The review as sent.
        caller: Who asks.
    """
    spec = body.get("spec") or {}
    answered: Object = {**body, "apiVersion": kind.api_version, "kind": kind.name}
    answered.setdefault("metadata", {"creationTimestamp": None})
    if kind.name == "SelfSubjectReview":
        info = {"username": caller.user.name, "groups": list(caller.user.groups)}
        return {**answered, "status": {"userInfo": info}}
    if kind.name == "SelfSubjectRulesReview":
        return {**answered, "status": _rules(access, caller.user, spec.get("namespace") or "")}
    user = caller.user
    if kind.name != "SelfSubjectAccessReview":
        user = User(name=spec.get("user", ""), groups=tuple(spec.get("groups") or ()))
    wanted = requested_attributes(spec)
    if kind.namespaced and wanted.namespace != namespace:
        raise bad_request("spec.resourceAttributes.namespace must match metadata.namespace")
    allowed = access.is_allowed(user, wanted)
    return {**answered, "status": {"allowed": allowed} | ({"reason": ""} if allowed else {"denied": False})}


def _rules(access: Access, user: User, namespace: str) -> Object:
    everything: list[Object] = [
        {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]},
        {"verbs": ["*"], "nonResourceURLs": ["*"]},
    ]
    rules = everything if "system:masters" in user.groups else list(access.rules_for(user, namespace))
    return {
        "resourceRules": [rule for rule in rules if rule.get("resources")],
        "nonResourceRules": [rule for rule in rules if rule.get("nonResourceURLs")],
        "incomplete": False,
    }


def issue_token(registry: Registry, access: Access, namespace: str, name: str, body: Any) -> Object:
    """Answer a TokenRequest."""
    registry.get(SERVICE_ACCOUNT, namespace, name)
    seconds = int(dig(body, "spec", "expirationSeconds", default=_DEFAULT_TOKEN_SECONDS))
    status = {
        "token": access.issue_token(namespace, name, seconds),
        "expirationTimestamp": timestamp(now() + timedelta(seconds=seconds)),
    }
    spec = {"audiences": ["https://kubernetes.default.svc"], "expirationSeconds": seconds}
    metadata = {"name": name, "namespace": namespace, "creationTimestamp": timestamp()}
    return {
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": metadata,
        "spec": spec,
        "status": status,
    }


def scale_of(item: Object) -> Object:
    """Give the Scale of a Deployment or ReplicaSet."""
    metadata = item["metadata"]
    labels = dig(item, "spec", "selector", "matchLabels", default={})
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
        },
        "spec": {"replicas": dig(item, "spec", "replicas", default=0)},
        "status": {
            "replicas": dig(item, "status", "replicas", default=0),
            "selector": ",".join(f"{key}={value}" for key, value in sorted(labels.items())),
        },
    }


def scaled(item: Object, scale: Object) -> Object:
    """Put a Scale's wish into its object."""
    changed: Object = clone(item)
    changed["spec"]["replicas"] = dig(scale, "spec", "replicas", default=0)
    version = dig(scale, "metadata", "resourceVersion")
    if version:
        changed["metadata"]["resourceVersion"] = version
    return changed
