"""What the API server serves: one table of kinds, from which routes, discovery, schemas and permissions follow."""

from dataclasses import dataclass

CRUD_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True, kw_only=True)
class Subresource:
    """A part of an object that has a path of its own.

    Args:
        name: The last element of its path.
        kind: The kind that is sent and answered there.
        group: The API group of that kind, empty for core.
        version: The API version of that kind.
        verbs: What can be done with it.
    """

    name: str
    kind: str
    group: str = ""
    version: str = ""
    verbs: tuple[str, ...] = ("get", "patch", "update")


# Kinds are singletons: identity is their equality, which keeps them cheap as dictionary keys.
@dataclass(frozen=True, kw_only=True, eq=False)
class Kind:
    """One kind of object.

    Args:
        group: API group, empty for core.
        version: API version.
        name: Kind in CamelCase.
        plural: Resource name in paths.
        namespaced: Whether its objects live in namespaces.
        short_names: What kubectl accepts for it.
        categories: Groups of kinds that kubectl accepts, such as "all".
        subresources: Paths below an object.
        verbs: What can be done; only "create" for kinds that are questions and never stored.
        has_generation: Whether metadata.generation counts changes of its spec.
    """

    group: str
    version: str
    name: str
    plural: str
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: tuple[Subresource, ...] = ()
    verbs: tuple[str, ...] = CRUD_VERBS
    has_generation: bool = False

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def singular(self) -> str:
        return self.name.lower()

    @property
    def group_resource(self) -> str:
        """Name a resource as error messages do: deployments.apps, pods."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def group_kind(self) -> str:
        """Name a kind as error messages do: Deployment.apps, Pod."""
        return f"{self.name}.{self.group}" if self.group else self.name

    @property
    def is_stored(self) -> bool:
        return "get" in self.verbs

    @property
    def base_path(self) -> str:
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    def subresource(self, name: str) -> Subresource | None:
        """Find a subresource by name."""
        return next((found for found in self.subresources if found.name == name), None)


def _status(kind: str) -> Subresource:
    return Subresource(name="status", kind=kind)


_SCALE = Subresource(name="scale", kind="Scale", group="autoscaling", version="v1")
_STREAM_VERBS = ("create", "get")
_PROXY_VERBS = ("create", "delete", "get", "patch", "update")
_QUESTION = ("create",)

_CORE = (
    Kind(
        group="",
        version="v1",
        name="Namespace",
        plural="namespaces",
        namespaced=False,
        short_names=("ns",),
        subresources=(_status("Namespace"), Subresource(name="finalize", kind="Namespace", verbs=("update",))),
    ),
    Kind(
        group="",
        version="v1",
        name="Pod",
        plural="pods",
        short_names=("po",),
        categories=("all",),
        has_generation=True,
        subresources=(
            _status("Pod"),
            Subresource(name="log", kind="Pod", verbs=("get",)),
            Subresource(name="exec", kind="PodExecOptions", verbs=_STREAM_VERBS),
            Subresource(name="proxy", kind="PodProxyOptions", verbs=_PROXY_VERBS),
            Subresource(name="eviction", kind="Eviction", group="policy", version="v1", verbs=("create",)),
            Subresource(name="binding", kind="Binding", verbs=("create",)),
        ),
    ),
    Kind(
        group="",
        version="v1",
        name="Service",
        plural="services",
        short_names=("svc",),
        categories=("all",),
        subresources=(
            _status("Service"),
            Subresource(name="proxy", kind="ServiceProxyOptions", verbs=_PROXY_VERBS),
        ),
    ),
    Kind(
        group="",
        version="v1",
        name="ServiceAccount",
        plural="serviceaccounts",
        short_names=("sa",),
        subresources=(
            Subresource(
                name="token",
                kind="TokenRequest",
                group="authentication.k8s.io",
                version="v1",
                verbs=("create",),
            ),
        ),
    ),
    Kind(
        group="",
        version="v1",
        name="Node",
        plural="nodes",
        namespaced=False,
        short_names=("no",),
        subresources=(_status("Node"),),
    ),
    Kind(group="", version="v1", name="Event", plural="events", short_names=("ev",)),
    Kind(group="", version="v1", name="ConfigMap", plural="configmaps", short_names=("cm",)),
    Kind(group="", version="v1", name="Secret", plural="secrets"),
    Kind(group="", version="v1", name="Endpoints", plural="endpoints", short_names=("ep",)),
    Kind(
        group="",
        version="v1",
        name="PersistentVolumeClaim",
        plural="persistentvolumeclaims",
        short_names=("pvc",),
        subresources=(_status("PersistentVolumeClaim"),),
    ),
    Kind(
        group="",
        version="v1",
        name="PersistentVolume",
        plural="persistentvolumes",
        namespaced=False,
        short_names=("pv",),
        subresources=(_status("PersistentVolume"),),
    ),
    Kind(
        group="",
        version="v1",
        name="ResourceQuota",
        plural="resourcequotas",
        short_names=("quota",),
        subresources=(_status("ResourceQuota"),),
    ),
    Kind(group="", version="v1", name="LimitRange", plural="limitranges", short_names=("limits",)),
)

_GROUPS = (
    Kind(
        group="apps",
        version="v1",
        name="Deployment",
        plural="deployments",
        short_names=("deploy",),
        categories=("all",),
        has_generation=True,
        subresources=(_status("Deployment"), _SCALE),
    ),
    Kind(
        group="apps",
        version="v1",
        name="ReplicaSet",
        plural="replicasets",
        short_names=("rs",),
        categories=("all",),
        has_generation=True,
        subresources=(_status("ReplicaSet"), _SCALE),
    ),
    Kind(
        group="autoscaling",
        version="v2",
        name="HorizontalPodAutoscaler",
        plural="horizontalpodautoscalers",
        short_names=("hpa",),
        categories=("all",),
        subresources=(_status("HorizontalPodAutoscaler"),),
    ),
    Kind(
        group="batch",
        version="v1",
        name="CronJob",
        plural="cronjobs",
        short_names=("cj",),
        categories=("all",),
        has_generation=True,
        subresources=(_status("CronJob"),),
    ),
    Kind(
        group="batch",
        version="v1",
        name="Job",
        plural="jobs",
        categories=("all",),
        has_generation=True,
        subresources=(_status("Job"),),
    ),
    Kind(
        group="policy",
        version="v1",
        name="PodDisruptionBudget",
        plural="poddisruptionbudgets",
        short_names=("pdb",),
        has_generation=True,
        subresources=(_status("PodDisruptionBudget"),),
    ),
    Kind(group="coordination.k8s.io", version="v1", name="Lease", plural="leases"),
    Kind(group="discovery.k8s.io", version="v1", name="EndpointSlice", plural="endpointslices", has_generation=True),
    Kind(group="events.k8s.io", version="v1", name="Event", plural="events", short_names=("ev",)),
    Kind(group="rbac.authorization.k8s.io", version="v1", name="Role", plural="roles"),
    Kind(group="rbac.authorization.k8s.io", version="v1", name="RoleBinding", plural="rolebindings"),
    Kind(
        group="rbac.authorization.k8s.io",
        version="v1",
        name="ClusterRole",
        plural="clusterroles",
        namespaced=False,
    ),
    Kind(
        group="rbac.authorization.k8s.io",
        version="v1",
        name="ClusterRoleBinding",
        plural="clusterrolebindings",
        namespaced=False,
    ),
    Kind(
        group="scheduling.k8s.io",
        version="v1",
        name="PriorityClass",
        plural="priorityclasses",
        namespaced=False,
        short_names=("pc",),
    ),
    Kind(
        group="storage.k8s.io",
        version="v1",
        name="StorageClass",
        plural="storageclasses",
        namespaced=False,
        short_names=("sc",),
    ),
    Kind(
        group="authentication.k8s.io",
        version="v1",
        name="SelfSubjectReview",
        plural="selfsubjectreviews",
        namespaced=False,
        verbs=_QUESTION,
    ),
    Kind(
        group="authorization.k8s.io",
        version="v1",
        name="SelfSubjectAccessReview",
        plural="selfsubjectaccessreviews",
        namespaced=False,
        verbs=_QUESTION,
    ),
    Kind(
        group="authorization.k8s.io",
        version="v1",
        name="SelfSubjectRulesReview",
        plural="selfsubjectrulesreviews",
        namespaced=False,
        verbs=_QUESTION,
    ),
    Kind(
        group="authorization.k8s.io",
        version="v1",
        name="SubjectAccessReview",
        plural="subjectaccessreviews",
        namespaced=False,
        verbs=_QUESTION,
    ),
    Kind(
        group="authorization.k8s.io",
        version="v1",
        name="LocalSubjectAccessReview",
        plural="localsubjectaccessreviews",
        verbs=_QUESTION,
    ),
)

KINDS: tuple[Kind, ...] = _CORE + _GROUPS
_BY_PATH = {(kind.group, kind.version, kind.plural): kind for kind in KINDS}
_BY_NAME = {(kind.group, kind.name): kind for kind in KINDS}


def find_resource(group: str, version: str, plural: str) -> Kind | None:
    """Find the kind behind a path."""
    return _BY_PATH.get((group, version, plural))


def kind_of(name: str, group: str = "") -> Kind:
    """Find a kind that is known to be served, by its name and group."""
    return _BY_NAME[(group, name)]


def find_kind(api_version: str, name: str) -> Kind | None:
    """Find the kind an object says it is."""
    group, _, version = api_version.rpartition("/")
    found = _BY_NAME.get((group, name))
    return found if found is not None and found.version == version else None


NAMESPACE = kind_of("Namespace")
POD = kind_of("Pod")
SERVICE = kind_of("Service")
SERVICE_ACCOUNT = kind_of("ServiceAccount")
NODE = kind_of("Node")
EVENT = kind_of("Event")
CONFIG_MAP = kind_of("ConfigMap")
SECRET = kind_of("Secret")
ENDPOINTS = kind_of("Endpoints")
CLAIM = kind_of("PersistentVolumeClaim")
VOLUME = kind_of("PersistentVolume")
QUOTA = kind_of("ResourceQuota")
DEPLOYMENT = kind_of("Deployment", "apps")
REPLICA_SET = kind_of("ReplicaSet", "apps")
AUTOSCALER = kind_of("HorizontalPodAutoscaler", "autoscaling")
CRON_JOB = kind_of("CronJob", "batch")
JOB = kind_of("Job", "batch")
DISRUPTION_BUDGET = kind_of("PodDisruptionBudget", "policy")
LEASE = kind_of("Lease", "coordination.k8s.io")
ENDPOINT_SLICE = kind_of("EndpointSlice", "discovery.k8s.io")
NEW_EVENT = kind_of("Event", "events.k8s.io")
ROLE = kind_of("Role", "rbac.authorization.k8s.io")
ROLE_BINDING = kind_of("RoleBinding", "rbac.authorization.k8s.io")
CLUSTER_ROLE = kind_of("ClusterRole", "rbac.authorization.k8s.io")
CLUSTER_ROLE_BINDING = kind_of("ClusterRoleBinding", "rbac.authorization.k8s.io")
PRIORITY_CLASS = kind_of("PriorityClass", "scheduling.k8s.io")
STORAGE_CLASS = kind_of("StorageClass", "storage.k8s.io")
