"""Objects: stored, refused, found and deleted as by a real API server."""

import pytest
from kubernetes import client
from kubernetes.client.rest import ApiException

from tests.sandbox.cluster.conftest import RunningCluster, deployment_manifest, pod_manifest, wait_until


def _causes(response):
    return {cause["field"]: cause for cause in response.json()["details"]["causes"]}


def test_no_token_is_unauthorized(cluster: RunningCluster) -> None:
    response = cluster.request("GET", "/api/v1/pods", headers={"Authorization": "Bearer wrong"})
    assert response.status_code == 401
    assert response.json()["reason"] == "Unauthorized"


def test_typed_client_round_trip(cluster: RunningCluster, namespace: str) -> None:
    body = client.V1ConfigMap(metadata=client.V1ObjectMeta(generate_name="cfg-"), data={"a": "b"})
    made = cluster.core.create_namespaced_config_map(namespace, body)
    assert made.metadata.name.startswith("cfg-")
    assert len(made.metadata.name) == len("cfg-") + 5
    made.data["a"] = "c"
    changed = cluster.core.replace_namespaced_config_map(made.metadata.name, namespace, made)
    assert int(changed.metadata.resource_version) > int(made.metadata.resource_version)
    assert cluster.core.read_namespaced_config_map(made.metadata.name, namespace).data == {"a": "c"}


def test_unknown_object_is_not_found(cluster: RunningCluster, namespace: str) -> None:
    with pytest.raises(ApiException) as caught:
        cluster.apps.read_namespaced_deployment("missing", namespace)
    assert caught.value.status == 404
    assert '"message":"deployments.apps \\"missing\\" not found"' in caught.value.body


def test_second_creation_conflicts(cluster: RunningCluster, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    cluster.create(path, {"metadata": {"name": "one"}})
    response = cluster.request("POST", path, {"metadata": {"name": "one"}})
    assert (response.status_code, response.json()["reason"]) == (409, "AlreadyExists")
    assert response.json()["message"] == 'configmaps "one" already exists'


def test_stale_update_conflicts(cluster: RunningCluster, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    first = cluster.create(path, {"metadata": {"name": "one"}})
    assert cluster.request("PUT", f"{path}/one", {**first, "data": {"a": "1"}}).ok
    response = cluster.request("PUT", f"{path}/one", {**first, "data": {"a": "2"}})
    assert (response.status_code, response.json()["reason"]) == (409, "Conflict")
    assert "the object has been modified" in response.json()["message"]


def test_update_that_changes_nothing_keeps_the_resource_version(cluster: RunningCluster, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    first = cluster.create(path, {"metadata": {"name": "one"}, "data": {"a": "1"}})
    again = cluster.request("PUT", f"{path}/one", first).json()
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


def test_missing_fields_are_named(cluster: RunningCluster, namespace: str) -> None:
    manifest = deployment_manifest("web", namespace)
    del manifest["spec"]["selector"]
    del manifest["spec"]["template"]["spec"]["containers"][0]["name"]
    response = cluster.request("POST", f"/apis/apps/v1/namespaces/{namespace}/deployments", manifest)
    assert (response.status_code, response.json()["reason"]) == (422, "Invalid")
    causes = _causes(response)
    assert causes["spec.selector"]["reason"] == "FieldValueRequired"
    assert causes["spec.template.spec.containers[0].name"]["message"] == "Required value"
    assert response.json()["message"].startswith('Deployment.apps "web" is invalid: [')


def test_selector_must_match_the_template_and_never_changes(cluster: RunningCluster, namespace: str) -> None:
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    manifest = deployment_manifest("web", namespace, replicas=0, command=["true"])
    other = {**manifest, "spec": {**manifest["spec"], "selector": {"matchLabels": {"app": "other"}}}}
    response = cluster.request("POST", path, other)
    assert "`selector` does not match template `labels`" in response.json()["message"]
    cluster.create(path, manifest)
    patch = {"spec": {"selector": {"matchLabels": {"tier": "x"}}, "template": {"metadata": {"labels": {"tier": "x"}}}}}
    headers = {"Content-Type": "application/merge-patch+json"}
    response = cluster.request("PATCH", f"{path}/web", patch, headers=headers)
    assert _causes(response)["spec.selector"]["message"].endswith("field is immutable")


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"image": ""}, "spec.containers[0].image", "Required value"),
        ({"name": "Main"}, "spec.containers[0].name", "RFC 1123 label"),
        ({"ports": [{"containerPort": 70000}]}, "spec.containers[0].ports[0].containerPort", "between 1 and 65535"),
        ({"volumeMounts": [{"name": "x", "mountPath": "/x"}]}, "spec.containers[0].volumeMounts[0].name", "Not found"),
        ({"imagePullPolicy": "Perhaps"}, "spec.containers[0].imagePullPolicy", "supported values"),
        ({"livenessProbe": {"periodSeconds": 1}}, "spec.containers[0].livenessProbe", "must specify a handler type"),
        ({"resources": {"limits": {"memory": "1Q"}}}, "spec.containers[0].resources.limits[memory]", "quantities must"),
        (
            {"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}},
            "spec.containers[0].resources.requests",
            "must be less than or equal to cpu limit",
        ),
    ],
)
def test_wrong_containers_are_refused(cluster: RunningCluster, change, field, words) -> None:
    manifest = pod_manifest("web", command=["true"], **change)
    response = cluster.request("POST", "/api/v1/namespaces/default/pods", manifest)
    assert response.status_code == 422
    assert words in _causes(response)[field]["message"]


def test_wrong_type_is_a_bad_request(cluster: RunningCluster, namespace: str) -> None:
    manifest = deployment_manifest("web", namespace)
    manifest["spec"]["replicas"] = "three"
    response = cluster.request("POST", f"/apis/apps/v1/namespaces/{namespace}/deployments", manifest)
    assert response.status_code == 400
    assert "cannot unmarshal string into Go struct field Deployment.spec.replicas of type integer" in response.text


@pytest.mark.parametrize(("mode", "code"), [("Strict", 400), ("Warn", 201), ("Ignore", 201)])
def test_unknown_fields_are_refused_warned_of_or_dropped(cluster, namespace, mode, code) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps?fieldValidation={mode}"
    response = cluster.request("POST", path, {"metadata": {"name": "one"}, "dta": {"a": "b"}})
    assert response.status_code == code
    assert ('unknown field \\"dta' in response.text) is (mode == "Strict")
    assert ("Warning" in response.headers) is (mode == "Warn")


def test_dry_run_stores_nothing(cluster: RunningCluster, namespace: str) -> None:
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    manifest = deployment_manifest("web", namespace, command=["true"])
    response = cluster.request("POST", f"{path}?dryRun=All", manifest)
    assert response.json()["spec"]["progressDeadlineSeconds"] == 600
    assert cluster.get(path)["items"] == []


def test_lists_select_by_labels_and_fields(cluster: RunningCluster, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    for name, tier in (("a", "x"), ("b", "y"), ("c", "z")):
        cluster.create(path, {"metadata": {"name": name, "labels": {"tier": tier, "all": "1"}}})

    def names(query: str) -> list[str]:
        return [item["metadata"]["name"] for item in cluster.get(f"{path}?{query}")["items"]]

    assert names("labelSelector=tier in (x,y)") == ["a", "b"]
    assert names("labelSelector=tier!=x,all") == ["b", "c"]
    assert names("labelSelector=tier notin (x),!missing,all=1") == ["b", "c"]
    assert names("fieldSelector=metadata.name=c") == ["c"]
    response = cluster.request("GET", f"{path}?fieldSelector=data.a=1")
    assert (response.status_code, "field label not supported" in response.text) == (400, True)


def test_lists_come_in_pages(cluster: RunningCluster, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/secrets"
    for index in range(5):
        cluster.create(path, {"metadata": {"name": f"s{index}"}, "stringData": {"a": "b"}})
    names, token = [], ""
    while True:
        page = cluster.core.list_namespaced_secret(namespace, limit=2, _continue=token)
        names.append([item.metadata.name for item in page.items])
        token = page.metadata._continue
        if not token:
            break
    assert names == [["s0", "s1"], ["s2", "s3"], ["s4"]]


def test_old_page_token_expires(cluster: RunningCluster, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/secrets"
    for index in range(3):
        cluster.create(path, {"metadata": {"name": f"s{index}"}})
    token = cluster.get(f"{path}?limit=1")["metadata"]["continue"]
    cluster.create(path, {"metadata": {"name": "s9"}})
    cluster.knob("watches/expire")
    response = cluster.request("GET", f"{path}?limit=1&continue={token}")
    assert (response.status_code, response.json()["reason"]) == (410, "Expired")


def test_finalizer_holds_an_object_until_it_is_taken_off(cluster: RunningCluster, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    cluster.create(path, {"metadata": {"name": "one", "finalizers": ["example.com/hold"]}})
    held = cluster.request("DELETE", f"{path}/one").json()
    assert held["metadata"]["deletionTimestamp"]
    patch = [{"op": "remove", "path": "/metadata/finalizers"}]
    headers = {"Content-Type": "application/json-patch+json"}
    assert cluster.request("PATCH", f"{path}/one", patch, headers=headers).ok
    assert cluster.request("GET", f"{path}/one").status_code == 404


def test_precondition_protects_a_successor(cluster: RunningCluster, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    cluster.create(path, {"metadata": {"name": "one"}})
    response = cluster.request("DELETE", f"{path}/one", {"preconditions": {"uid": "other"}})
    assert (response.status_code, "Precondition failed: UID" in response.text) == (409, True)


def test_owned_objects_go_with_their_owner(cluster: RunningCluster, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    owner = cluster.create(path, {"metadata": {"name": "owner"}})
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    cluster.create(path, {"metadata": {"name": "owned", "ownerReferences": [reference]}})
    cluster.create(path, {"metadata": {"name": "of-nobody"}})
    cluster.request("DELETE", f"{path}/owner")
    wait_until(lambda: cluster.request("GET", f"{path}/owned").status_code == 404)
    left = {one["metadata"]["name"] for one in cluster.get(path)["items"]}
    assert left == {"kube-root-ca.crt", "of-nobody"}


def test_orphaned_objects_stay(cluster: RunningCluster, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    owner = cluster.create(path, {"metadata": {"name": "owner"}})
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    cluster.create(path, {"metadata": {"name": "owned", "ownerReferences": [reference]}})
    cluster.request("DELETE", f"{path}/owner?propagationPolicy=Orphan")
    wait_until(lambda: cluster.request("GET", f"{path}/owner").status_code == 404)
    assert (
        "ownerReferences" not in cluster.get(f"{path}/owned")["metadata"]
        or not cluster.get(f"{path}/owned")["metadata"]["ownerReferences"]
    )


def test_foreground_deletion_takes_the_owner_last(cluster: RunningCluster, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    owner = cluster.create(path, {"metadata": {"name": "owner"}})
    reference = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": "owner",
        "uid": owner["metadata"]["uid"],
        "blockOwnerDeletion": True,
    }
    held = {"name": "owned", "ownerReferences": [reference], "finalizers": ["example.com/hold"]}
    cluster.create(path, {"metadata": held})
    cluster.request("DELETE", f"{path}/owner?propagationPolicy=Foreground")
    wait_until(lambda: "deletionTimestamp" in cluster.get(f"{path}/owned")["metadata"])
    assert cluster.get(f"{path}/owner")["metadata"]["finalizers"] == ["foregroundDeletion"]
    headers = {"Content-Type": "application/merge-patch+json"}
    cluster.request("PATCH", f"{path}/owned", {"metadata": {"finalizers": None}}, headers=headers)
    wait_until(lambda: cluster.request("GET", f"{path}/owner").status_code == 404)


def test_namespace_takes_its_content_along(cluster: RunningCluster, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}"
    cluster.create(f"{path}/configmaps", {"metadata": {"name": "one"}})
    cluster.request("DELETE", path)
    wait_until(lambda: cluster.request("GET", path).status_code == 404)
    response = cluster.request("POST", f"{path}/configmaps", {"metadata": {"name": "one"}})
    assert response.json()["message"] == f'namespaces "{namespace}" not found'


def test_stuck_namespace_says_what_it_waits_for(cluster: RunningCluster, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}"
    cluster.create(f"{path}/configmaps", {"metadata": {"name": "one", "finalizers": ["example.com/hold"]}})
    cluster.request("DELETE", path)

    def remaining() -> str:
        conditions = cluster.get(path)["status"].get("conditions", [])
        return next((one["message"] for one in conditions if one["type"] == "NamespaceFinalizersRemaining"), "")

    wait_until(lambda: "example.com/hold in 1 resource instances" in remaining())
    response = cluster.request("POST", f"{path}/configmaps", {"metadata": {"name": "two"}})
    assert response.status_code == 403
    assert "because it is being terminated" in response.json()["message"]
    assert response.json()["details"]["causes"][0]["reason"] == "NamespaceTerminating"


def test_service_gets_a_cluster_address_and_keeps_it(cluster: RunningCluster, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/services"
    made = cluster.create(path, {"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}})
    assert made["spec"]["clusterIP"].startswith("34.118.2")
    assert made["spec"]["ports"] == [{"port": 80, "protocol": "TCP", "targetPort": 80}]
    body = {**made, "spec": {"ports": [{"port": 81}]}}
    assert cluster.request("PUT", f"{path}/web", body).json()["spec"]["clusterIP"] == made["spec"]["clusterIP"]


def test_generation_counts_changes_of_the_spec_only(cluster: RunningCluster, namespace: str) -> None:
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    cluster.create(path, deployment_manifest("web", namespace, replicas=0, command=["true"]))
    headers = {"Content-Type": "application/merge-patch+json"}
    for patch, generation in (({"metadata": {"labels": {"a": "b"}}}, 1), ({"spec": {"minReadySeconds": 1}}, 2)):
        changed = cluster.request("PATCH", f"{path}/web", patch, headers=headers).json()
        assert changed["metadata"]["generation"] == generation


def test_status_is_written_through_its_own_path(cluster: RunningCluster, namespace: str) -> None:
    path = f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets"
    body = {"metadata": {"name": "b"}, "spec": {"maxUnavailable": 1}, "status": {"disruptionsAllowed": 9}}
    assert cluster.create(path, body).get("status", {}).get("disruptionsAllowed") != 9
