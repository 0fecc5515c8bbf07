"""Field sets, merges, patches, selectors and quantities, for inputs nobody thought of."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamway.sandbox.cluster.api.defaults import apply_defaults
from streamway.sandbox.cluster.api.fields import decode_fields, encode_fields, owned_fields, show_path
from streamway.sandbox.cluster.api.kinds import DEPLOYMENT, POD
from streamway.sandbox.cluster.api.ownership import Owner, apply_fields, track_update
from streamway.sandbox.cluster.api.patches import json_patch, merge_patch, strategic_patch
from streamway.sandbox.cluster.api.quantities import parse_quantity
from streamway.sandbox.cluster.api.schema import load_schema
from streamway.sandbox.cluster.api.selectors import parse_labels
from streamway.sandbox.cluster.api.statuses import ApiError
from streamway.sandbox.cluster.objects import clone

ROOT = load_schema().root(POD)
_names = st.sampled_from(["a", "b", "c"])
_texts = st.sampled_from(["1", "2", "3"])
_variables = st.lists(st.builds(dict, name=_names, value=_texts), unique_by=lambda one: one["name"], max_size=3)
_ports = st.lists(
    st.builds(dict, containerPort=st.sampled_from([80, 81]), name=_names),
    unique_by=lambda one: one["containerPort"],
    max_size=2,
)
_containers = st.lists(
    st.fixed_dictionaries(
        {"name": _names},
        optional={
            "image": _texts,
            "env": _variables,
            "ports": _ports,
            "args": st.lists(_texts, max_size=2),
            "resources": st.builds(dict, limits=st.dictionaries(st.sampled_from(["cpu", "memory"]), _texts)),
        },
    ),
    unique_by=lambda one: one["name"],
    max_size=3,
)
_specs = st.fixed_dictionaries(
    {},
    optional={
        "containers": _containers,
        "nodeSelector": st.dictionaries(_names, _texts),
        "terminationGracePeriodSeconds": st.integers(1, 3),
    },
)
_metadata = st.fixed_dictionaries({"name": st.just("p")}, optional={"labels": st.dictionaries(_names, _texts)})
_pods = st.fixed_dictionaries({"metadata": _metadata}, optional={"spec": _specs})


def owner(name: str, operation: str = "Apply") -> Owner:
    return Owner(manager=name, operation=operation, api_version="v1", time="2026-01-01T00:00:00Z")


def bare(item: dict[str, Any]) -> dict[str, Any]:
    return {path: value for path, value in owned_fields(item, ROOT).items() if value not in ({}, [])}


@settings(deadline=None, max_examples=80)
@given(_pods)
def test_field_sets_survive_encoding(pod: dict[str, Any]) -> None:
    paths = frozenset(owned_fields(pod, ROOT))
    assert decode_fields(encode_fields(paths)) == paths


@settings(deadline=None, max_examples=80)
@given(_pods, _pods)
def test_applying_again_leaves_exactly_what_was_applied(first: dict[str, Any], second: dict[str, Any]) -> None:
    base = {"metadata": {"name": "p"}}
    item, owners = apply_fields([], base, first, ROOT, owner("me"), force=False)
    item, owners = apply_fields(owners, item, second, ROOT, owner("me"), force=False)
    assert bare(item) == bare(second)


@settings(deadline=None, max_examples=80)
@given(_pods, _pods, _pods)
def test_another_managers_fields_survive_mine(
    mine: dict[str, Any], theirs: dict[str, Any], later: dict[str, Any]
) -> None:
    base = {"metadata": {"name": "p"}}
    item, owners = apply_fields([], base, mine, ROOT, owner("me"), force=False)
    item, owners = apply_fields(owners, item, theirs, ROOT, owner("them"), force=True)
    wanted = owned_fields(theirs, ROOT)
    try:
        item, owners = apply_fields(owners, item, later, ROOT, owner("me"), force=False)
    except ApiError as error:
        assert error.code == 409
        return
    present = owned_fields(item, ROOT)
    assert all(present[path] == value for path, value in wanted.items() if value not in ({}, []))


@settings(deadline=None, max_examples=60)
@given(_pods, _pods)
def test_updates_leave_no_owner_of_what_is_gone(before: dict[str, Any], after: dict[str, Any]) -> None:
    owners = track_update([], {}, before, ROOT, owner("one", "Update"))
    owners = track_update(owners, before, after, ROOT, owner("two", "Update"))
    present = frozenset(owned_fields(after, ROOT))
    values = owned_fields(after, ROOT), owned_fields(before, ROOT)
    for one in owners:
        assert all(any(path == known[: len(path)] for known in present) for path in one.fields)
    second = next(one for one in owners if one.manager == "two")
    changed = {path for path in present if values[1].get(path, None) != values[0][path]}
    assert changed == set(second.fields)


@settings(deadline=None, max_examples=60)
@given(_pods)
def test_defaults_are_stable(pod: dict[str, Any]) -> None:
    once = clone(pod)
    apply_defaults(POD, once)
    twice = clone(once)
    apply_defaults(POD, twice)
    assert once == twice


def test_paths_are_shown_as_in_conflicts() -> None:
    path = ("f:spec", 'k:{"containerPort":80,"protocol":"TCP"}', 'v:"x"', "f:a.b/c")
    assert show_path(path) == '.spec[containerPort=80,protocol="TCP"][="x"].a.b/c'


def _deployment(containers: list[dict[str, Any]], **spec: Any) -> dict[str, Any]:
    return {"spec": {"template": {"spec": {"containers": containers}}, **spec}}


def test_strategic_patch_follows_its_directives() -> None:
    root = load_schema().root(DEPLOYMENT)
    variable = {"name": "X", "value": "1"}
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}
    live = _deployment([{"name": "a", "image": "1", "env": [variable]}, {"name": "b"}], strategy=rolling)
    changed = [
        {"name": "b", "$patch": "delete"},
        {"name": "c", "image": "3"},
        {"name": "a", "env": [{"name": "Y", "value": "2"}, {"name": "X", "$patch": "delete"}]},
    ]
    patch = _deployment(changed, strategy={"$retainKeys": ["type"], "type": "Recreate"})
    patch["spec"]["template"]["spec"]["$setElementOrder/containers"] = [{"name": "c"}, {"name": "a"}]
    outcome = [{"name": "c", "image": "3"}, {"name": "a", "image": "1", "env": [{"name": "Y", "value": "2"}]}]
    assert strategic_patch(live, patch, root) == _deployment(outcome, strategy={"type": "Recreate"})


def test_strategic_patch_replaces_where_asked() -> None:
    root = load_schema().root(DEPLOYMENT)
    live = {"spec": {"template": {"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}}}
    patch = {"spec": {"template": {"spec": {"containers": [{"$patch": "replace"}, {"name": "c"}]}}}}
    patched = strategic_patch(live, patch, root)
    assert patched["spec"]["template"]["spec"]["containers"] == [{"name": "c"}]


@pytest.mark.parametrize(
    ("operations", "outcome"),
    [
        ([{"op": "add", "path": "/a/-", "value": 3}], {"a": [1, 2, 3], "b/c": 1}),
        ([{"op": "remove", "path": "/a/0"}], {"a": [2], "b/c": 1}),
        ([{"op": "replace", "path": "/b~1c", "value": None}], {"a": [1, 2], "b/c": None}),
        ([{"op": "move", "from": "/a", "path": "/d"}], {"d": [1, 2], "b/c": 1}),
        (
            [{"op": "test", "path": "/a/1", "value": 2}, {"op": "copy", "from": "/a/1", "path": "/e"}],
            {"a": [1, 2], "b/c": 1, "e": 2},
        ),
    ],
)
def test_json_patch(operations: list[dict[str, Any]], outcome: dict[str, Any]) -> None:
    assert json_patch({"a": [1, 2], "b/c": 1}, operations) == outcome


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "remove", "path": "/x"},
        {"op": "test", "path": "/a", "value": 1},
        {"op": "add", "path": "/a/9", "value": 1},
    ],
)
def test_json_patch_that_does_not_apply_is_refused(operation: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        json_patch({"a": []}, [operation])
    assert caught.value.code == 422


def test_merge_patch_removes_by_null() -> None:
    assert merge_patch({"a": {"b": 1, "c": 2}}, {"a": {"b": None, "d": {"e": None}}}) == {"a": {"c": 2, "d": {}}}


@pytest.mark.parametrize(
    ("text", "value"),
    [("500m", "0.5"), ("2Gi", str(2 << 30)), ("1e3", "1000"), ("1.5k", "1500"), (".5", "0.5"), ("3", "3")],
)
def test_quantities(text: str, value: str) -> None:
    assert parse_quantity(text) == Decimal(value)


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=20))
def test_any_selector_is_read_or_refused(text: str) -> None:
    try:
        test = parse_labels(text)
    except ApiError as error:
        assert error.code == 400
    else:
        assert test({}) in (True, False)
