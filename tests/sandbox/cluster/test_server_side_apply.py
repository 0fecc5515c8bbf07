"""Server-side apply: who owns what, who is refused, and what an apply gives up."""

import pytest
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import ConflictError

from tests.sandbox.cluster.conftest import RunningCluster, deployment_manifest

_APPLY = {"Content-Type": "application/apply-patch+yaml"}


class Applier:
    """Applies one Deployment under the names of several managers."""

    def __init__(self, cluster: RunningCluster, namespace: str) -> None:
        self.cluster = cluster
        self.path = f"/apis/apps/v1/namespaces/{namespace}/deployments/web"

    def apply(self, body, manager="one", force=False, dry_run=False):
        query = f"?fieldManager={manager}&force={str(force).lower()}" + ("&dryRun=All" if dry_run else "")
        return self.cluster.request("PATCH", self.path + query, body, headers=_APPLY)

    def owners(self) -> dict[str, dict]:
        managed = self.cluster.get(self.path)["metadata"].get("managedFields", [])
        return {one["manager"]: one["fieldsV1"] for one in managed if one["operation"] == "Apply"}

    def container(self, name="main"):
        containers = self.cluster.get(self.path)["spec"]["template"]["spec"]["containers"]
        return next(one for one in containers if one["name"] == name)


@pytest.fixture
def applier(cluster: RunningCluster, namespace: str) -> Applier:
    return Applier(cluster, namespace)


def manifest(replicas=0, **container):
    made = deployment_manifest("web", "", replicas=replicas, command=["sleep", "60"], **container)
    del made["metadata"]["namespace"]
    return made


def partial(**spec):
    return {"apiVersion": "apps/v1", "kind": "Deployment", "spec": spec}


def partial_container(**container):
    return partial(template={"spec": {"containers": [container]}})


def test_creation_and_update_have_their_codes(applier: Applier) -> None:
    assert applier.apply(manifest()).status_code == 201
    assert applier.apply(manifest(replicas=1)).status_code == 200


def test_same_configuration_again_changes_nothing(applier: Applier) -> None:
    first = applier.apply(manifest()).json()
    applier.cluster.kubectl("rollout", "status", "-n", first["metadata"]["namespace"], "deploy/web")
    before = applier.cluster.get(applier.path)
    assert applier.apply(manifest()).json()["metadata"] == before["metadata"]


def test_owner_has_what_it_named_and_no_defaults(applier: Applier) -> None:
    applier.apply(manifest(ports=[{"containerPort": 8000}]))
    spec = applier.owners()["one"]["f:spec"]
    assert "f:progressDeadlineSeconds" not in spec
    containers = spec["f:template"]["f:spec"]["f:containers"]
    assert containers['k:{"name":"main"}']["f:ports"] == {
        'k:{"containerPort":8000,"protocol":"TCP"}': {".": {}, "f:containerPort": {}}
    }


def test_conflict_names_manager_and_field(applier: Applier) -> None:
    applier.apply(manifest(replicas=1))
    response = applier.apply(partial(replicas=2), manager="two")
    assert (response.status_code, response.json()["reason"]) == (409, "Conflict")
    assert response.json()["message"] == 'Apply failed with 1 conflict: conflict with "one": .spec.replicas'
    cause = {"reason": "FieldManagerConflict", "message": 'conflict with "one"', "field": ".spec.replicas"}
    assert response.json()["details"]["causes"] == [cause]


def test_several_conflicts_are_all_named(applier: Applier) -> None:
    applier.apply(manifest(replicas=1, env=[{"name": "A", "value": "1"}]))
    body = partial_container(name="main", image="other:1", env=[{"name": "A", "value": "2"}])
    text = applier.apply(body, manager="two").json()["message"]
    assert text.startswith('Apply failed with 2 conflicts: conflicts with "one":\n- ')
    assert '- .spec.template.spec.containers[name="main"].env[name="A"].value' in text
    assert '- .spec.template.spec.containers[name="main"].image' in text


def test_update_conflicts_tell_version_and_time(applier: Applier) -> None:
    applier.apply(manifest(replicas=1))
    patch = {"spec": {"replicas": 3}}
    headers = {"Content-Type": "application/merge-patch+json", "User-Agent": "scaler/1.0"}
    applier.cluster.request("PATCH", applier.path, patch, headers=headers)
    text = applier.apply(manifest(replicas=1)).json()["message"]
    assert 'conflict with "scaler" using apps/v1 at 20' in text
    assert text.endswith(": .spec.replicas")


def test_force_takes_the_field_over(applier: Applier) -> None:
    applier.apply(manifest(replicas=1))
    assert applier.apply(partial(replicas=2), manager="two", force=True).json()["spec"]["replicas"] == 2
    owners = applier.owners()
    assert owners["two"] == {"f:spec": {"f:replicas": {}}}
    assert "f:replicas" not in owners["one"]["f:spec"]


def test_equal_values_are_shared(applier: Applier) -> None:
    applier.apply(manifest(replicas=1))
    assert applier.apply(partial(replicas=1), manager="two").ok
    assert "f:replicas" in applier.owners()["one"]["f:spec"]
    without = manifest()
    del without["spec"]["replicas"]
    assert applier.apply(without).json()["spec"]["replicas"] == 1


def test_field_no_longer_applied_goes_back_to_its_default(applier: Applier) -> None:
    body = manifest(replicas=3)
    body["spec"]["strategy"] = {"type": "Recreate"}
    assert applier.apply(body).json()["spec"]["strategy"] == {"type": "Recreate"}
    del body["spec"]["strategy"], body["spec"]["replicas"]
    spec = applier.apply(body).json()["spec"]
    assert spec["strategy"]["type"] == "RollingUpdate"
    assert spec["replicas"] == 1


def test_items_no_longer_applied_are_removed_and_others_stay(applier: Applier) -> None:
    mine = [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]
    applier.apply(manifest(env=mine))
    theirs = partial_container(name="main", env=[{"name": "C", "value": "3"}])
    assert applier.apply(theirs, manager="two").ok
    applier.apply(manifest(env=mine[:1]))
    assert applier.container()["env"] == [{"name": "A", "value": "1"}, {"name": "C", "value": "3"}]


def test_probe_no_longer_applied_goes_with_its_defaults(applier: Applier) -> None:
    probe = {"httpGet": {"path": "/health", "port": 8000}}
    applier.apply(manifest(readinessProbe=probe))
    assert applier.container()["readinessProbe"]["periodSeconds"] == 10
    applier.apply(manifest())
    assert "readinessProbe" not in applier.container()


def test_container_of_another_manager_is_left_alone(applier: Applier) -> None:
    applier.apply(manifest())
    sidecar = partial_container(name="side", image="python:3.11", command=["sleep", "60"])
    assert applier.apply(sidecar, manager="injector").ok
    applier.apply(manifest(env=[{"name": "A", "value": "1"}]))
    assert applier.container("side")["image"] == "python:3.11"
    assert applier.apply(partial(), manager="injector").ok
    names = [one["name"] for one in applier.cluster.get(applier.path)["spec"]["template"]["spec"]["containers"]]
    assert names == ["main"]


def test_order_is_the_applied_one(applier: Applier) -> None:
    applier.apply(manifest(env=[{"name": "A", "value": "1"}, {"name": "C", "value": "3"}]))
    applier.apply(manifest(env=[{"name": name, "value": "1"} for name in "CBA"]))
    assert [one["name"] for one in applier.container()["env"]] == ["C", "B", "A"]


def test_atomic_list_has_one_owner(applier: Applier) -> None:
    applier.apply(manifest(args=["a", "b"]))
    text = applier.apply(partial_container(name="main", args=["a"]), manager="two").json()["message"]
    assert text.endswith('.spec.template.spec.containers[name="main"].args')


def test_controllers_own_the_status(applier: Applier) -> None:
    applier.apply(manifest())
    applier.cluster.kubectl("rollout", "status", "deploy/web", "-n", applier.path.split("/")[5])
    managed = applier.cluster.get(applier.path)["metadata"]["managedFields"]
    status = next(one for one in managed if one.get("subresource") == "status")
    assert status["manager"] == "kube-controller-manager"
    assert status["operation"] == "Update"


def test_dry_run_shows_the_outcome_and_stores_nothing(applier: Applier) -> None:
    applier.apply(manifest())
    before = applier.cluster.get(applier.path)
    assert applier.apply(manifest(replicas=5), dry_run=True).json()["spec"]["replicas"] == 5
    assert applier.cluster.get(applier.path)["spec"] == before["spec"]


def test_manager_must_be_named(applier: Applier) -> None:
    response = applier.cluster.request("PATCH", applier.path, manifest(), headers=_APPLY)
    assert (response.status_code, "fieldManager" in response.text) == (400, True)


def test_invalid_configuration_is_refused_and_stores_nothing(applier: Applier) -> None:
    body = manifest()
    body["spec"]["template"]["spec"]["containers"][0]["image"] = ""
    response = applier.apply(body)
    assert response.status_code == 422
    assert applier.cluster.request("GET", applier.path).status_code == 404


def test_dynamic_client_applies(cluster: RunningCluster, namespace: str) -> None:
    maps = DynamicClient(cluster.api).resources.get(api_version="v1", kind="ConfigMap")
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one", "namespace": namespace}}
    made = maps.server_side_apply({**body, "data": {"a": "1"}}, field_manager="first")
    assert made.metadata.managedFields[0].manager == "first"
    with pytest.raises(ConflictError) as caught:
        maps.server_side_apply({**body, "data": {"a": "2"}}, field_manager="second")
    assert b'conflict with \\"first\\": .data.a' in caught.value.body
    maps.server_side_apply({**body, "data": {"a": "2"}}, field_manager="second", force_conflicts=True)
    assert cluster.core.read_namespaced_config_map("one", namespace).data == {"a": "2"}


def test_managed_fields_can_be_cleared(applier: Applier) -> None:
    applier.apply(manifest())
    headers = {"Content-Type": "application/merge-patch+json"}
    applier.cluster.request("PATCH", applier.path, {"metadata": {"managedFields": [{}]}}, headers=headers)
    assert "one" not in applier.owners()
