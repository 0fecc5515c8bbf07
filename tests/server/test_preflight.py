"""Rights that a later step needs are missed before anything is moved, and nothing is changed by looking."""

from collections.abc import Callable

import pytest

from streamway.cluster import ClusterConnection
from streamway.errors import ClusterPermissionError
from streamway.preflight import Form, check_parameters
from streamway.server import role_rules


def form(namespace: str) -> Form:
    server = {"name": "tiny", "namespace": namespace, "image": "example.com/engine:1"}
    return Form(model_id="org/tiny", release_root="gs://models/serving", server=server)


def test_missing_rights_are_named_before_a_model_is_moved(as_account: Callable[..., None], namespace: str) -> None:
    as_account(*[rule for rule in role_rules() if rule["resources"] != ["leases"]])
    with pytest.raises(ClusterPermissionError, match=f"In namespace {namespace} of .* we may not: .*leases") as caught:
        check_parameters(form(namespace))
    assert "Role with these verbs" in caught.value.next_step


def test_with_the_documented_rights_nothing_is_missed_and_nothing_changed(
    as_account: Callable[..., None], connection: ClusterConnection, namespace: str
) -> None:
    as_account(*role_rules())
    assert "cluster" in check_parameters(form(namespace))
    for kind in ("/api/v1/namespaces/{}/services", "/apis/apps/v1/namespaces/{}/deployments"):
        assert connection.get(kind.format(namespace))["items"] == []
