"""What the API server says about itself: versions, groups and resources, in the old and the aggregated form."""

from streamway.sandbox.cluster.api.kinds import KINDS, Kind, Subresource
from streamway.sandbox.cluster.api.schema import SERVED_VERSION
from streamway.sandbox.cluster.objects import Object

GIT_VERSION = f"v{SERVED_VERSION}-gke.1000000"


def server_version() -> Object:
    """Answer /version."""
    major, minor, _ = SERVED_VERSION.split(".")
    return {
        "major": major,
        "minor": minor,
        "gitVersion": GIT_VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "2026-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "",
        "platform": "linux/amd64",
    }


def _versions() -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for kind in KINDS:
        versions = groups.setdefault(kind.group, [])
        if kind.version not in versions:
            versions.append(kind.version)
    return groups


def _kinds_in(group: str, version: str) -> list[Kind]:
    return [kind for kind in KINDS if kind.group == group and kind.version == version]


def api_versions() -> Object:
    """Answer /api."""
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def group_list() -> Object:
    """Answer /apis."""
    groups = [api_group(name) for name in _versions() if name]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def serves_group(name: str) -> bool:
    """Tell whether an API group is served."""
    return name in _versions()


def api_group(name: str) -> Object:
    """Answer /apis/GROUP."""
    versions = [{"groupVersion": f"{name}/{one}", "version": one} for one in _versions()[name]]
    return {
        "kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": versions, "preferredVersion": versions[0]
    }  # fmt: skip


def resource_list(group: str, version: str) -> Object | None:
    """Answer /api/VERSION and /apis/GROUP/VERSION; None where nothing is served."""
    kinds = _kinds_in(group, version)
    if not kinds:
        return None
    resources = [entry for kind in kinds for entry in _old_entries(kind)]
    name = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": resources}


def _old_entries(kind: Kind) -> list[Object]:
    entry: Object = {
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.name,
        "verbs": list(kind.verbs),
    }
    if kind.short_names:
        entry["shortNames"] = list(kind.short_names)
    if kind.categories:
        entry["categories"] = list(kind.categories)
    below = [_old_subresource(kind, subresource) for subresource in kind.subresources]
    return [entry, *below]


def _old_subresource(kind: Kind, subresource: Subresource) -> Object:
    entry: Object = {
        "name": f"{kind.plural}/{subresource.name}",
        "singularName": "",
        "namespaced": kind.namespaced,
        "kind": subresource.kind,
        "verbs": list(subresource.verbs),
    }
    return entry | ({"group": subresource.group, "version": subresource.version} if subresource.version else {})


def aggregated(core: bool) -> Object:
    """Answer /api or /apis in the aggregated form, which saves kubectl a request for each group.

    Args:
        core: Whether the core group is asked for, or all others.
    """
    items = [
        {
            "metadata": {"name": group, "creationTimestamp": None} if group else {"creationTimestamp": None},
            "versions": [_aggregated_version(group, version) for version in versions],
        }
        for group, versions in _versions().items()
        if (group == "") is core
    ]
    return {"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items}


def _aggregated_version(group: str, version: str) -> Object:
    resources = [_aggregated_resource(kind) for kind in _kinds_in(group, version)]
    return {"version": version, "freshness": "Current", "resources": resources}


def _aggregated_resource(kind: Kind) -> Object:
    entry: Object = {
        "resource": kind.plural,
        "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.name},
        "scope": "Namespaced" if kind.namespaced else "Cluster",
        "singularResource": kind.singular,
        "verbs": list(kind.verbs),
    }
    if kind.short_names:
        entry["shortNames"] = list(kind.short_names)
    if kind.categories:
        entry["categories"] = list(kind.categories)
    if kind.subresources:
        entry["subresources"] = [
            {
                "subresource": one.name,
                "responseKind": {
                    "group": one.group if one.version else kind.group,
                    "version": one.version or kind.version,
                    "kind": one.kind,
                },
                "verbs": list(one.verbs),
            }
            for one in kind.subresources
        ]
    return entry
