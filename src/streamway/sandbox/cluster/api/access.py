"""Who may do what: tokens, impersonation and role-based access control, with the API server's own refusals."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from streamway.sandbox.cluster.api.caller import ADMINISTRATOR, AUTHENTICATED, MASTERS, User
from streamway.sandbox.cluster.api.faults import Faults
from streamway.sandbox.cluster.api.kinds import CLUSTER_ROLE, CLUSTER_ROLE_BINDING, ROLE, ROLE_BINDING
from streamway.sandbox.cluster.api.statuses import ApiError, unauthorized
from streamway.sandbox.cluster.api.store import Store
from streamway.sandbox.cluster.objects import Object, dig

_SERVICE_ACCOUNT = "system:serviceaccount"


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """What is asked for, in the terms of a SubjectAccessReview.

    Args:
        verb: get, list, create, ...
        group: API group.
        resource: Plural, or "" for a path that is no resource.
        subresource: Subresource, may be empty.
        namespace: Namespace, empty at the cluster scope.
        name: Object name, may be empty.
        path: The URL path, for what is no resource.
    """

    verb: str
    group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""

    @property
    def full_resource(self) -> str:
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource

    @property
    def qualified(self) -> str:
        """Name the resource with its group, as the sandbox's faults do."""
        base = f"{self.resource}.{self.group}" if self.group else self.resource
        return f"{base}/{self.subresource}" if self.subresource else base


class Access:
    """Authentication and authorization.

    Args:
        store: Where roles and bindings are.
        faults: Permissions that are missing on order.
        token: The administrator's token; service account tokens are signed with it.
    """

    def __init__(self, store: Store, faults: Faults, token: str) -> None:
        self._store = store
        self._faults = faults
        self._token = token

    def authenticate(self, authorization: str) -> User:
        """Read a request's Authorization header.

        Raises:
            ApiError: 401 for anything but a known token.
        """
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise unauthorized()
        if hmac.compare_digest(token, self._token):
            return ADMINISTRATOR
        return self._service_account(token)

    def _service_account(self, token: str) -> User:
        payload, _, signature = token.partition(".")
        if not hmac.compare_digest(self._sign(payload), signature):
            raise unauthorized()
        claims = json.loads(base64.urlsafe_b64decode(payload))
        if claims["expires"] < time.time():
            raise unauthorized()
        return service_account_user(claims["namespace"], claims["name"])

    def issue_token(self, namespace: str, name: str, lifetime_seconds: int) -> str:
        """Make a token for a service account."""
        claims = {"namespace": namespace, "name": name, "expires": time.time() + lifetime_seconds}
        payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode()
        return f"{payload}.{self._sign(payload)}"

    def _sign(self, payload: str) -> str:
        return hmac.new(self._token.encode(), payload.encode(), hashlib.sha256).hexdigest()

    def is_allowed(self, user: User, wanted: Attributes) -> bool:
        """Decide whether a user may do something."""
        if self._faults.prohibits(user, wanted.verb, wanted.qualified, wanted.namespace):
            return False
        if MASTERS in user.groups:
            return True
        return any(permits(rule, wanted) for rule in rules_for(self._store, user, wanted.namespace))

    def check(self, user: User, wanted: Attributes) -> None:
        """Refuse what a user may not do.

        Raises:
            ApiError: 403 in the words of RBAC.
        """
        if not self.is_allowed(user, wanted):
            raise _refusal(user, wanted)

    def rules_for(self, user: User, namespace: str) -> Iterator[Object]:
        """List the rules that hold for a user in a namespace, empty for the cluster scope."""
        return rules_for(self._store, user, namespace)


def rules_for(store: Store, user: User, namespace: str) -> Iterator[Object]:
    """List the rules that hold for a user in a namespace, empty for the cluster scope."""
    for binding in store.items(CLUSTER_ROLE_BINDING):
        if _binds(binding, user, ""):
            yield from role_rules(store, binding["roleRef"], "")
    if namespace:
        for binding in store.items(ROLE_BINDING, namespace):
            if _binds(binding, user, namespace):
                yield from role_rules(store, binding["roleRef"], namespace)


def role_rules(store: Store, reference: Object, namespace: str) -> list[Object]:
    """List the rules of the role that a binding refers to; none where it is not there."""
    if reference["kind"] == "ClusterRole":
        role = store.get(CLUSTER_ROLE, "", reference["name"])
    else:
        role = store.get(ROLE, namespace, reference["name"])
    return (role or {}).get("rules") or []


def service_account_user(namespace: str, name: str) -> User:
    """Give the user that a service account is."""
    groups = (f"{_SERVICE_ACCOUNT}s", f"{_SERVICE_ACCOUNT}s:{namespace}", AUTHENTICATED)
    return User(name=f"{_SERVICE_ACCOUNT}:{namespace}:{name}", groups=groups)


def _binds(binding: Object, user: User, namespace: str) -> bool:
    for subject in binding.get("subjects") or []:
        if subject["kind"] == "Group" and subject["name"] in user.groups:
            return True
        if subject["kind"] == "User" and subject["name"] == user.name:
            return True
        if subject["kind"] == "ServiceAccount":
            place = subject.get("namespace") or namespace
            if user.name == f"{_SERVICE_ACCOUNT}:{place}:{subject['name']}":
                return True
    return False


def permits(rule: Object, wanted: Attributes) -> bool:
    """Tell whether a rule allows something."""
    if not _covers(rule.get("verbs"), wanted.verb):
        return False
    if not wanted.resource:
        paths = rule.get("nonResourceURLs") or []
        return any(wanted.path == path or path == "*" or _under(path, wanted.path) for path in paths)
    if not _covers(rule.get("apiGroups"), wanted.group):
        return False
    resources = rule.get("resources") or []
    if "*" not in resources and wanted.full_resource not in resources:
        return False
    names = rule.get("resourceNames") or []
    return not names or wanted.name in names


def _under(pattern: str, path: str) -> bool:
    return pattern.endswith("/*") and path.startswith(pattern[:-1])


def _covers(allowed: Any, wanted: str) -> bool:
    return wanted in (allowed or []) or "*" in (allowed or [])


def _refusal(user: User, wanted: Attributes) -> ApiError:
    if not wanted.resource:
        text = f'forbidden: User "{user.name}" cannot {wanted.verb} path "{wanted.path}"'
        return ApiError(403, "Forbidden", text, {})
    group = f"{wanted.resource}.{wanted.group}" if wanted.group else wanted.resource
    subject = f'{group} "{wanted.name}"' if wanted.name else group
    where = f'in the namespace "{wanted.namespace}"' if wanted.namespace else "at the cluster scope"
    text = (
        f'{subject} is forbidden: User "{user.name}" cannot {wanted.verb} resource "{wanted.full_resource}"'
        f' in API group "{wanted.group}" {where}'
    )
    details = {"name": wanted.name, "group": wanted.group, "kind": wanted.resource}
    return ApiError(403, "Forbidden", text, {key: value for key, value in details.items() if value})


def impersonated(user: User, name: str, groups: list[str]) -> User:
    """Give the user that an Impersonate-User header asks to be."""
    if name.startswith(f"{_SERVICE_ACCOUNT}:") and not groups:
        namespace, _, account = name.removeprefix(f"{_SERVICE_ACCOUNT}:").partition(":")
        return service_account_user(namespace, account)
    return User(name=name, groups=(*groups, AUTHENTICATED))


def requested_attributes(spec: Object) -> Attributes:
    """Read what an access review asks about."""
    wanted = spec.get("resourceAttributes") or {}
    if not wanted:
        other = spec.get("nonResourceAttributes") or {}
        return Attributes(verb=other.get("verb", ""), path=other.get("path", ""))
    return Attributes(
        verb=dig(wanted, "verb", default=""),
        group=dig(wanted, "group", default=""),
        resource=dig(wanted, "resource", default="") or "*",
        subresource=dig(wanted, "subresource", default=""),
        namespace=dig(wanted, "namespace", default=""),
        name=dig(wanted, "name", default=""),
    )
