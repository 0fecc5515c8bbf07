"""The project that a GKE cluster belongs to: is it billed, are the services on that a run uses, and what may we do?

Asked before a run, because a service that is off, or an account without a right, is otherwise found in the middle of
one, in the words of whichever client comes upon it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from streamway.cluster.access import GKE_NAME, cloud_credentials
from streamway.cluster.connection import sentence
from streamway.errors import ClusterError, ClusterPermissionError, ClusterUnreachableError

# What finding and entering a GKE cluster takes of the project; everything else is the cluster's and the bucket's own.
NEEDED_PERMISSIONS = ("container.clusters.connect", "container.clusters.get")
NEEDED_SERVICES = ("compute", "container", "storage")
_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Project:
    """What is known of a project.

    Args:
        name: Its id.
        unknown: Sentences about what this account may not look at.
    """

    name: str
    unknown: tuple[str, ...] = ()


def check_project(cluster: str, *, services: Sequence[str] = ()) -> Project | None:
    """Look at the project of a GKE cluster; None for a cluster that is reached in another way.

    Args:
        cluster: As in `streamway.cluster.connect`.
        services: Services that are used beside GKE and Cloud Storage, such as `aiplatform`.

    Raises:
        ClusterError: the project is not billed, or a service is off; says how to turn it on.
        ClusterPermissionError: this account lacks rights, which are named.
        ClusterUnreachableError: there are no credentials, or Google does not answer.
    """
    match = GKE_NAME.fullmatch(cluster)
    if match is None:
        return None
    asking = _Asking(match[1])
    checks = (asking.check_permissions, asking.check_billing, lambda: asking.check_services(services))
    return Project(name=match[1], unknown=tuple(said for check in checks if (said := check())))


class _Asking:
    """Questions about one project; each returns what could not be found out, or nothing."""

    def __init__(self, project: str) -> None:
        from google.auth.transport.requests import AuthorizedSession

        self._project = project
        self._session = AuthorizedSession(cloud_credentials())

    def check_permissions(self) -> str:
        url = f"https://cloudresourcemanager.googleapis.com/v3/projects/{self._project}:testIamPermissions"
        found = self._ask("POST", url, json={"permissions": list(NEEDED_PERMISSIONS)})
        if found is None:
            return f"what this account may do in {self._project} cannot be asked"
        missing = [one for one in NEEDED_PERMISSIONS if one not in found.get("permissions", ())]
        if missing:
            raise ClusterPermissionError(
                f"In the project {self._project} this account lacks {', '.join(missing)}.",
                next_step="Ask for roles/container.clusterViewer and roles/container.developer on the project.",
            )
        return ""

    def check_billing(self) -> str:
        found = self._ask("GET", f"https://cloudbilling.googleapis.com/v1/projects/{self._project}/billingInfo")
        if found is None:
            return "whether it is billed cannot be asked"
        if not found.get("billingEnabled"):
            raise ClusterError(
                f"Billing is off in the project {self._project}, so nothing can be made or run there.",
                next_step=f"Link an account: gcloud billing projects link {self._project} --billing-account=ACCOUNT.",
            )
        return ""

    def check_services(self, services: Sequence[str]) -> str:
        wanted = [f"{name}.googleapis.com" for name in sorted({*NEEDED_SERVICES, *services})]
        found = self._ask(
            "GET",
            f"https://serviceusage.googleapis.com/v1/projects/{self._project}/services:batchGet",
            params={"names": [f"projects/{self._project}/services/{name}" for name in wanted]},
        )
        if found is None:
            return "which services are on cannot be asked"
        on = {entry["config"]["name"] for entry in found.get("services", ()) if entry.get("state") == "ENABLED"}
        if off := [name for name in wanted if name not in on]:
            raise ClusterError(
                f"In the project {self._project} these services are off: {', '.join(off)}.",
                next_step=f"Turn them on: gcloud services enable {' '.join(off)} --project={self._project}.",
            )
        return ""

    def _ask(self, method: str, url: str, **details: Any) -> dict[str, Any] | None:
        """Ask Google; None where this account, or a service that is off, does not let us."""
        from google.auth.exceptions import GoogleAuthError
        from requests import RequestException

        try:
            answer = self._session.request(method, url, timeout=_SECONDS, **details)
            if answer.status_code in (403, 404):
                return None
            answer.raise_for_status()
            return dict(answer.json())
        except (RequestException, GoogleAuthError, ValueError) as error:
            raise ClusterUnreachableError(
                f"Google does not say what is needed about the project {self._project}: {sentence(error)}",
                next_step="Check the credentials and the network, and run again.",
            ) from error
