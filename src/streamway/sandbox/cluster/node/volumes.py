"""A pod's volumes as folders of this machine."""

from pathlib import Path

from streamway.sandbox.cluster.api.kinds import CLAIM
from streamway.sandbox.cluster.node.environment import ConfigError, PodFacts, config_data, field_value, secret_data
from streamway.sandbox.cluster.node.rewriting import Mount
from streamway.sandbox.cluster.objects import Object, dig, namespace_of

# Shared memory is the machine's own: nothing could be put in its place by rewriting paths.
_LEFT_ALONE = ("/dev/shm",)
# A real API server lets the token of a pod live for a year, whatever is asked for, because old clients read it once.
_TOKEN_SECONDS = 365 * 24 * 3600


class Volumes:
    """The volumes of one pod.

    Args:
        folder: The pod's own folder.
        claims: The folder of all persistent volume claims.
    """

    def __init__(self, folder: Path, claims: Path) -> None:
        self._folder = folder / "volumes"
        self._claims = claims
        self._places: dict[str, Path] = {}

    def set_up(self, facts: PodFacts) -> None:
        """Make every volume.

        Raises:
            ConfigError: one refers to something that is not there, in the kubelet's words.
        """
        for volume in facts.pod["spec"].get("volumes") or []:
            name = volume["name"]
            try:
                self._places[name] = self._make(facts, volume)
            except ConfigError as error:
                raise ConfigError(f'MountVolume.SetUp failed for volume "{name}" : {error}') from error

    def mounts(self, container: Object) -> tuple[Mount, ...]:
        """Say where a container's mounts are on this machine."""
        found = []
        for mount in container.get("volumeMounts") or []:
            path = mount["mountPath"]
            if path.rstrip("/") in _LEFT_ALONE:
                continue
            source = self._places[mount["name"]]
            if mount.get("subPath"):
                source = source / mount["subPath"]
                if not source.exists():
                    source.mkdir(parents=True)
            found.append(Mount(path=path, source=source))
        return tuple(found)

    def _make(self, facts: PodFacts, volume: Object) -> Path:
        place = self._folder / str(volume["name"])
        if volume.get("hostPath") is not None:
            return _host_path(volume["hostPath"])
        if volume.get("persistentVolumeClaim") is not None:
            return self._claimed(facts, volume["persistentVolumeClaim"])
        place.mkdir(parents=True, exist_ok=True)
        for path, content in _files(facts, volume).items():
            target = place / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return place

    def _claimed(self, facts: PodFacts, source: Object) -> Path:
        name, namespace = str(source["claimName"]), namespace_of(facts.pod)
        claim = facts.store.get(CLAIM, namespace, name)
        if claim is None:
            raise ConfigError(f'persistentvolumeclaim "{name}" not found')
        if dig(claim, "status", "phase") != "Bound":
            raise ConfigError(f"pod has unbound immediate PersistentVolumeClaims: {name}")
        place = self._claims / namespace / name
        place.mkdir(parents=True, exist_ok=True)
        return place


def _host_path(source: Object) -> Path:
    place = Path(str(source["path"]))
    if source.get("type") == "DirectoryOrCreate":
        place.mkdir(parents=True, exist_ok=True)
    elif source.get("type") and not place.exists():
        raise ConfigError(f"hostPath type check failed: {place} is not a {source['type'].lower()}")
    return place


def _files(facts: PodFacts, volume: Object) -> dict[str, bytes]:
    """Give the files that a volume is filled with, by their paths in it."""
    if volume.get("configMap") is not None:
        source = volume["configMap"]
        found = config_data(facts, source["name"], optional=bool(source.get("optional")))
        return _chosen(found or {}, source)
    if volume.get("secret") is not None:
        source = volume["secret"]
        found = secret_data(facts, source["secretName"], optional=bool(source.get("optional")))
        return _chosen(found or {}, source)
    if volume.get("downwardAPI") is not None:
        return _downward(facts, volume["downwardAPI"])
    if volume.get("projected") is not None:
        files: dict[str, bytes] = {}
        for source in volume["projected"].get("sources") or []:
            files |= _projected(facts, source)
        return files
    return {}


def _projected(facts: PodFacts, source: Object) -> dict[str, bytes]:
    if source.get("serviceAccountToken") is not None:
        account = field_value(facts, "spec.serviceAccountName")
        token = facts.issue_token(namespace_of(facts.pod), account, _TOKEN_SECONDS)
        return {source["serviceAccountToken"]["path"]: token.encode()}
    if source.get("secret") is not None:
        named = {**source["secret"], "secretName": source["secret"]["name"]}
        return _files(facts, {"secret": named})
    return _files(facts, source)


def _chosen(found: dict[str, bytes], source: Object) -> dict[str, bytes]:
    items = source.get("items")
    if items is None:
        return found
    missing = [one["key"] for one in items if one["key"] not in found]
    if missing and not source.get("optional"):
        raise ConfigError(f"references non-existent config key: {missing[0]}")
    return {one["path"]: found[one["key"]] for one in items if one["key"] in found}


def _downward(facts: PodFacts, source: Object) -> dict[str, bytes]:
    return {
        one["path"]: field_value(facts, one["fieldRef"]["fieldPath"]).encode()
        for one in source.get("items") or []
        if one.get("fieldRef")
    }
