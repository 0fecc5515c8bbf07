"""Misfortune on order: what a test can make go wrong in the cluster, through /sandbox/faults.

Nothing here is asked by a client of the cluster; the API answers as a real one does in that situation.
"""

import time
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from streamway.sandbox.cluster.api.caller import User
from streamway.sandbox.cluster.api.kinds import Kind
from streamway.sandbox.cluster.api.statuses import ApiError
from streamway.sandbox.cluster.objects import Object


@dataclass(frozen=True, kw_only=True)
class Denial:
    """An admission webhook that refuses writes.

    Args:
        message: Its explanation.
        webhook: Its name.
        resource: Which resources it is asked about, as plural[.group]; patterns are allowed.
        namespace: In which namespaces; patterns are allowed.
        operations: On which operations: CREATE, UPDATE, DELETE.
        code: The HTTP status of the refusal.
    """

    message: str
    webhook: str = "policy.sandbox.streamway.dev"
    resource: str = "*"
    namespace: str = "*"
    operations: tuple[str, ...] = ("CREATE", "UPDATE")
    code: int = 403


@dataclass(frozen=True, kw_only=True)
class Prohibition:
    """A permission that is missing, even for administrators.

    Args:
        verb: The verb; patterns are allowed.
        resource: The resource as plural[.group][/subresource]; patterns are allowed.
        namespace: The namespace; patterns are allowed.
        user: The user; patterns are allowed.
    """

    verb: str = "*"
    resource: str = "*"
    namespace: str = "*"
    user: str = "*"


@dataclass(kw_only=True)
class Faults:
    """Everything that goes wrong now.

    Args:
        denials: Admission webhooks that refuse.
        prohibitions: Permissions that are missing.
        proxy_refusals: Service proxy requests still to be answered with 503.
        outage_until: Until when, on time.monotonic(), the API server breaks every connection.
    """

    denials: list[Denial] = field(default_factory=list)
    prohibitions: list[Prohibition] = field(default_factory=list)
    proxy_refusals: int = 0
    outage_until: float = 0.0

    @property
    def is_out(self) -> bool:
        return time.monotonic() < self.outage_until

    def clear(self) -> None:
        """Let everything go well again."""
        self.denials.clear()
        self.prohibitions.clear()
        self.proxy_refusals = 0
        self.outage_until = 0.0

    def check_admission(self, kind: Kind, namespace: str, operation: str) -> None:
        """Ask the webhooks.

        Raises:
            ApiError: the first refusal.
        """
        for denial in self.denials:
            concerned = fnmatchcase(kind.group_resource, denial.resource)
            if concerned and fnmatchcase(namespace, denial.namespace) and operation in denial.operations:
                text = f'admission webhook "{denial.webhook}" denied the request: {denial.message}'
                reason = "Forbidden" if denial.code == 403 else "BadRequest"
                raise ApiError(denial.code, reason, text)

    def prohibits(self, user: User, verb: str, resource: str, namespace: str) -> bool:
        """Tell whether a permission is missing on order."""
        return any(
            fnmatchcase(verb, one.verb)
            and fnmatchcase(resource, one.resource)
            and fnmatchcase(namespace, one.namespace)
            and fnmatchcase(user.name, one.user)
            for one in self.prohibitions
        )


def read_denial(body: Object) -> Denial:
    """Read a denial as /sandbox/faults takes it."""
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in body.items()}
    return Denial(**fields)


def read_prohibition(body: Object) -> Prohibition:
    """Read a prohibition as /sandbox/faults takes it."""
    return Prohibition(**body)
