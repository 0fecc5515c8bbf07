"""Nothing is taken away from under a server, and what goes with an endpoint is known before the first thing does."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from grpc_roots import share_authority
from part_processes import announcement, start_part

from streamway import storage
from streamway.cluster import RELEASE_URI, ClusterConnection
from streamway.errors import ClusterPermissionError, InUseError, SettingsError
from streamway.retirement import plan_retirement, retire_cache, retire_releases
from streamway.server import retire_server
from streamway.server.serving import EVERY_OTHER, list_serving
from streamway.storage.layout import MANIFEST_SUFFIX

SHA = "0123456789abcdef0123456789abcdef01234567"
OTHER_SHA = "f" * 40
ROOT = "gs://bucket/models"
RELEASE = f"{ROOT}/org/m/{SHA}"
DEPLOYMENTS = {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "list"]}


@pytest.fixture
def root(tmp_path: Path) -> str:
    """A root with two releases, and what lies beside them."""
    for sha in (SHA, OTHER_SHA):
        release = tmp_path / "models" / "org" / "m" / sha
        release.mkdir(parents=True)
        (release / "model.safetensors").write_bytes(b"weights")
        for suffix in (MANIFEST_SUFFIX, ".passed.staging.json", ".report.html", ".kits/a/kit.tar"):
            beside = Path(f"{release}{suffix}")
            beside.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text("{}")
    return str(tmp_path / "models")


RBAC = "/apis/rbac.authorization.k8s.io/v1"


@pytest.fixture
def neighbour(connection: ClusterConnection, namespace: str) -> Iterator[Callable[[str], str]]:
    """Has something serve from a release in another namespace, which the test's limited account may look into."""
    name = f"{namespace}-next"
    kinds = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": name}}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
    subjects = [{"kind": "ServiceAccount", "name": "limited", "namespace": namespace}]
    bound = {**kinds, "roleRef": reference, "subjects": subjects}
    rules = [{"apiGroups": [""], "resources": ["namespaces"], "verbs": ["list"]}, DEPLOYMENTS]

    def settle(release_uri: str) -> str:
        connection.request("POST", "/api/v1/namespaces", body={"metadata": {"name": name}})
        connection.request("POST", f"{RBAC}/clusterroles", body={**kinds, "kind": "ClusterRole", "rules": rules})
        binding = {**bound, "kind": "RoleBinding"}
        connection.request("POST", f"{RBAC}/namespaces/{name}/rolebindings", body=binding)
        labels = {"app.kubernetes.io/managed-by": "streamway", "app.kubernetes.io/instance": "next"}
        pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "engine", "image": "none"}]}}
        spec = {"replicas": 0, "selector": {"matchLabels": labels}, "template": pod}
        annotations = {RELEASE_URI: f"{release_uri}/"}
        metadata = {"name": "next-1", "labels": labels, "annotations": annotations}
        body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}
        connection.request("POST", f"/apis/apps/v1/namespaces/{name}/deployments", body=body)
        # Names of namespaces are not in any of them.
        binding = {**bound, "kind": "ClusterRoleBinding"}
        only_names = {**kinds, "metadata": {"name": f"{name}-names"}, "kind": "ClusterRole", "rules": rules[:1]}
        connection.request("POST", f"{RBAC}/clusterroles", body=only_names)
        binding = {**binding, "roleRef": {**reference, "name": f"{name}-names"}}
        connection.request("POST", f"{RBAC}/clusterrolebindings", body=binding)
        return name

    yield settle
    for path in (f"clusterrolebindings/{name}", f"clusterroles/{name}-names", f"clusterroles/{name}"):
        connection.request("DELETE", f"{RBAC}/{path}")
    connection.request("DELETE", f"/api/v1/namespaces/{name}")


def release_of(root: str, sha: str = SHA) -> str:
    return f"{root}/org/m/{sha}"


@pytest.fixture(scope="module")
def cloud_storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Cloud Storage with one bucket, and the API of its caches: what their clients are told."""
    folder = tmp_path_factory.mktemp("bucket")
    share_authority(folder)
    started = {"bucket": ("--buckets", "bucket=US-CENTRAL1"), "caches": ()}
    processes = [start_part(part, folder, *arguments) for part, arguments in started.items()]
    try:
        environments = [announcement(part, folder)["environment"] for part in started]
        yield {name: value for environment in environments for name, value in environment.items()}
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(20)


@pytest.fixture
def bucket_root(cloud_storage: dict[str, str], namespace: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A root in the bucket, with nothing in it."""
    for variable, value in cloud_storage.items():
        monkeypatch.setenv(variable, value)
    return f"gs://bucket/{namespace}/models"


@pytest.fixture
def serve(cluster: Any, deploy: Callable[..., Any]) -> Callable[..., Any]:
    """Deploys an endpoint that streams a release."""
    cluster.misfortunes.cause("nodes", count=2, gpus=1)
    return lambda name, uri=RELEASE: deploy(name=name, commit_sha=SHA, release_uri=f"{uri}/")


def plan(root: str, namespace: str, name: str = "tiny", **more: Any) -> Any:
    return plan_retirement(name=name, namespace=namespace, release_root=root, **more)


def test_the_releases_of_an_endpoint_are_those_that_it_serves_from(
    serve: Callable[..., Any], bucket_root: str, namespace: str
) -> None:
    serve("tiny", uri=release_of(bucket_root))
    found = plan(bucket_root, namespace, delete_releases=True)
    assert found.releases == (release_of(bucket_root),)
    assert len(found.deployments) == 1
    assert any(release_of(bucket_root) in line for line in found.lines())
    assert plan(bucket_root, namespace).releases == ()
    assert plan(f"{bucket_root}-of-others", namespace, delete_releases=True).releases == ()


def test_a_release_that_another_endpoint_serves_from_stays(
    serve: Callable[..., Any], bucket_root: str, namespace: str
) -> None:
    serve("tiny", uri=release_of(bucket_root))
    serve("other", uri=release_of(bucket_root))
    with pytest.raises(InUseError, match=rf"{SHA}/ cannot be deleted: {namespace}/other \(.*\) serves from it"):
        plan(bucket_root, namespace, delete_releases=True)
    retire_server(name="tiny", namespace=namespace)
    with pytest.raises(InUseError, match="serves from it"):
        retire_releases(release_root=bucket_root, releases=[release_of(bucket_root)], namespace=namespace)


def test_the_caches_of_a_bucket_that_is_streamed_from_stay(
    serve: Callable[..., Any], bucket_root: str, namespace: str
) -> None:
    serve("tiny", uri=release_of(bucket_root))
    assert plan(bucket_root, namespace, cache_zones=["us-central1-a", "us-central1-a"]).zones == ("us-central1-a",)
    serve("other", uri=f"gs://bucket/elsewhere/org/m/{SHA}")
    with pytest.raises(InUseError, match=rf"caches of gs://bucket cannot be disabled: {namespace}/other"):
        plan(bucket_root, namespace, cache_zones=["us-central1-a"])
    retire_server(name="tiny", namespace=namespace)
    with pytest.raises(InUseError, match=rf"caches of gs://bucket cannot be disabled: {namespace}/other"):
        retire_cache(release_root=bucket_root, zones=["us-central1-a"], namespace=namespace)


def test_deleting_a_release_leaves_nothing_of_it_and_all_of_the_next(root: str, namespace: str) -> None:
    before = {path for path in Path(root).rglob("*") if path.is_file() and OTHER_SHA in str(path)}
    assert retire_releases(release_root=root, releases=[f"{release_of(root)}/"], namespace=namespace) == 5
    left = {path for path in Path(root).rglob("*") if path.is_file()}
    assert left == before
    assert storage.find_release(f"{release_of(root)}/") is None
    assert retire_releases(release_root=root, releases=[release_of(root)], namespace=namespace) == 0
    assert retire_releases(release_root=root, releases=[], namespace=namespace) == 0


@pytest.mark.parametrize(
    "uri",
    [
        "/etc",
        "{root}",
        "{root}/",
        "{root}/org/m",
        "{root}/.runs/x/" + SHA,
        "{root}/../other/m/" + SHA,
        "gs://b/o/m/" + SHA,
    ]
    + ["{root}/org/m/main", "{root}/org/m/" + SHA + "/sub", "{root}x/org/m/" + SHA],
)
def test_nothing_but_releases_under_the_root_is_ever_deleted(root: str, namespace: str, uri: str) -> None:
    uri = uri.format(root=root)
    with pytest.raises(SettingsError, match="is not a release under"):
        plan(root, namespace, releases=[uri])
    with pytest.raises(SettingsError, match="is not a release under"):
        retire_releases(release_root=root, releases=[uri], namespace=namespace)


def test_caches_are_only_asked_for_where_there_is_a_bucket(root: str, namespace: str) -> None:
    with pytest.raises(SettingsError, match="only buckets are cached"):
        plan(root, namespace, cache_zones=["us-central1-a"])


def test_an_endpoint_that_is_gone_is_planned_as_nothing(root: str, namespace: str) -> None:
    found = plan(root, namespace, delete_releases=True, releases=[release_of(root)])
    assert (found.deployments, found.releases) == ((), (release_of(root),))


def test_what_serves_is_listed_with_where_it_streams_from(serve: Callable[..., Any], namespace: str) -> None:
    serve("tiny")
    (found,) = list_serving(namespace=namespace)
    assert (found.namespace, found.name, found.release_uri) == (namespace, "tiny", f"{RELEASE}/")
    assert found in list_serving()
    retire_server(name="tiny", namespace=namespace)
    assert list_serving(namespace=namespace) == ()


def publish(root: str, *shas: str, model: str = "org/m") -> list[str]:
    """Have releases of a model, each with its manifest; return their URIs."""
    uris = [f"{root}/{model}/{sha}" for sha in shas]
    for uri in uris:
        storage.write_file(f"{uri}/model.safetensors", b"weights")
        storage.write_file(f"{uri}{MANIFEST_SUFFIX}", b"{}")
    return uris


def test_older_releases_stay_unless_asked_for_and_are_named_either_way(
    serve: Callable[..., Any], bucket_root: str, namespace: str
) -> None:
    newest, *older = publish(bucket_root, SHA, "1" * 40, "2" * 40, OTHER_SHA)
    (another_model,) = publish(bucket_root, "3" * 40, model="org/another")
    in_flight = storage.write_file(f"{bucket_root}/org/m/{'4' * 40}/model.safetensors", b"no manifest yet").uri
    serve("tiny", uri=newest)
    kept = plan(bucket_root, namespace, delete_releases=True)
    assert (kept.releases, kept.stays) == ((newest,), tuple(sorted(older)))
    assert sum("--older-releases takes too" in line for line in kept.lines()) == 3
    all_gone = plan(bucket_root, namespace, delete_releases=True, older_releases=True)
    assert (all_gone.releases, all_gone.stays) == (tuple(sorted([newest, *older])), ())
    assert plan(bucket_root, namespace).stays == ()
    assert retire_server(name="tiny", namespace=namespace)
    retire_releases(release_root=bucket_root, releases=all_gone.releases, namespace=namespace)
    left = {file.uri for file in storage.list_files(bucket_root)}
    assert left == {f"{another_model}{MANIFEST_SUFFIX}", f"{another_model}/model.safetensors", in_flight}


def test_an_older_release_that_something_else_serves_from_stays(
    serve: Callable[..., Any], bucket_root: str, namespace: str
) -> None:
    newest, older, oldest = publish(bucket_root, SHA, "1" * 40, "2" * 40)
    serve("tiny", uri=newest)
    serve("other", uri=older)
    found = plan(bucket_root, namespace, delete_releases=True, older_releases=True)
    assert found.in_use == (older,)
    assert set(found.releases) == {newest, oldest}
    assert f"Stays     {older}: something else serves from it" in found.lines()


def test_models_that_the_endpoint_served_before_are_remembered(
    serve: Callable[..., Any], bucket_root: str, namespace: str
) -> None:
    (newest,) = publish(bucket_root, SHA)
    before, beside = publish(bucket_root, "1" * 40, "2" * 40, model="org/before")
    serve("tiny", uri=newest)
    remembered = [f"{newest}/", f"{before}/", "gs://elsewhere/org/m/" + SHA, f"{bucket_root}/org/gone/{SHA}/"]
    found = plan(bucket_root, namespace, delete_releases=True, older_releases=True, remembered=remembered)
    assert set(found.releases) == {newest, before, beside}
    assert set(plan(bucket_root, namespace, delete_releases=True, remembered=remembered).releases) == {newest}


def test_what_an_interrupted_retirement_left_is_found_by_the_next_one(root: str, cluster: Any, namespace: str) -> None:
    last, first = publish(root, SHA, "1" * 40)
    found = plan(root, namespace, delete_releases=True, remembered=[last, first])
    assert (found.deployments, found.releases) == ((), (last,))
    assert set(found.stays) == {first, release_of(root, OTHER_SHA)}


def test_older_releases_without_the_newest_are_no_retirement(root: str, namespace: str) -> None:
    with pytest.raises(SettingsError, match="older_releases is yes and delete_releases is no") as caught:
        plan(root, namespace, older_releases=True)
    assert "--releases --older-releases" in caught.value.next_step


def test_what_may_not_be_looked_at_is_named_and_keeps_everything_that_is_shared(
    root: str, namespace: str, as_account: Callable[..., None]
) -> None:
    (newest,) = publish(root, SHA)
    as_account(DEPLOYMENTS)
    wanted = {"releases": [newest]}
    with pytest.raises(ClusterPermissionError, match=f"cannot be known: .* in {EVERY_OTHER}") as caught:
        plan(root, namespace, **wanted)
    assert "Grant list on deployments in every namespace" in caught.value.next_step
    with pytest.raises(ClusterPermissionError, match="cannot be known"):
        retire_releases(release_root=root, releases=[newest], namespace=namespace)
    with pytest.raises(ClusterPermissionError, match="cannot be known"):
        retire_cache(release_root=ROOT, zones=["us-central1-a"], namespace=namespace)
    assert Path(newest + MANIFEST_SUFFIX).exists()
    assert plan(root, namespace).unseen == ()
    accepted = plan(root, namespace, **wanted, despite_unseen=True)
    assert (accepted.releases, accepted.unseen) == ((newest,), (EVERY_OTHER,))
    assert f"Not seen  {EVERY_OTHER}: its Deployments may not be listed" in accepted.lines()
    assert retire_releases(release_root=root, releases=[newest], namespace=namespace, despite_unseen=True)


def test_each_namespace_that_may_be_looked_into_is(
    bucket_root: str, namespace: str, as_account: Callable[..., None], neighbour: Callable[[str], str]
) -> None:
    served, unserved = publish(bucket_root, SHA, OTHER_SHA)
    beside = neighbour(served)
    as_account(DEPLOYMENTS)
    with pytest.raises(InUseError, match=f"{beside}/next"):
        plan(bucket_root, namespace, releases=[served], despite_unseen=True)
    with pytest.raises(ClusterPermissionError, match=r"may not be listed in .*default") as caught:
        plan(bucket_root, namespace, releases=[unserved])
    assert EVERY_OTHER not in str(caught.value)
    assert beside not in str(caught.value)
    found = plan(bucket_root, namespace, releases=[unserved], despite_unseen=True)
    assert "default" in found.unseen
    assert beside not in found.unseen


@pytest.mark.parametrize("minutes", [-1, 1441, float("nan")])
def test_nobody_waits_for_caches_for_ever(namespace: str, minutes: float) -> None:
    with pytest.raises(SettingsError, match=r"cache_wait_minutes is .*; expected 0 to 1440") as caught:
        retire_cache(release_root=ROOT, zones=["us-central1-a"], namespace=namespace, wait_minutes=minutes)
    assert "90" in caught.value.next_step
