"""Nothing is taken away from under a server, and what goes with an endpoint is known before the first thing does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamway import storage
from streamway.errors import InUseError, SettingsError
from streamway.retirement import plan_retirement, retire_cache, retire_releases
from streamway.server import retire_server
from streamway.server.serving import list_serving
from streamway.storage.layout import MANIFEST_SUFFIX

SHA = "0123456789abcdef0123456789abcdef01234567"
OTHER_SHA = "f" * 40
ROOT = "gs://bucket/models"
RELEASE = f"{ROOT}/org/m/{SHA}"


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


def release_of(root: str, sha: str = SHA) -> str:
    return f"{root}/org/m/{sha}"


@pytest.fixture
def serve(cluster: Any, deploy: Callable[..., Any]) -> Callable[..., Any]:
    """Deploys an endpoint that streams a release."""
    cluster.misfortunes.cause("nodes", count=2, gpus=1)
    return lambda name, uri=RELEASE: deploy(name=name, commit_sha=SHA, release_uri=f"{uri}/")


def plan(root: str, namespace: str, name: str = "tiny", **more: Any) -> Any:
    return plan_retirement(name=name, namespace=namespace, release_root=root, **more)


def test_the_releases_of_an_endpoint_are_those_that_it_serves_from(serve: Callable[..., Any], namespace: str) -> None:
    serve("tiny")
    found = plan(ROOT, namespace, delete_releases=True)
    assert found.releases == (RELEASE,)
    assert len(found.deployments) == 1
    assert any(RELEASE in line for line in found.lines())
    assert plan(ROOT, namespace).releases == ()
    assert plan("gs://other/models", namespace, delete_releases=True).releases == ()


def test_a_release_that_another_endpoint_serves_from_stays(serve: Callable[..., Any], namespace: str) -> None:
    serve("tiny")
    serve("other")
    with pytest.raises(InUseError, match=rf"{SHA}/ cannot be deleted: {namespace}/other \(.*\) serves from it"):
        plan(ROOT, namespace, delete_releases=True)
    retire_server(name="tiny", namespace=namespace)
    with pytest.raises(InUseError, match="serves from it"):
        retire_releases(release_root=ROOT, releases=[RELEASE])


def test_the_caches_of_a_bucket_that_is_streamed_from_stay(serve: Callable[..., Any], namespace: str) -> None:
    serve("tiny")
    assert plan(ROOT, namespace, cache_zones=["us-central1-a", "us-central1-a"]).zones == ("us-central1-a",)
    serve("other", uri=f"gs://bucket/elsewhere/org/m/{SHA}")
    with pytest.raises(InUseError, match=rf"caches of gs://bucket cannot be disabled: {namespace}/other"):
        plan(ROOT, namespace, cache_zones=["us-central1-a"])
    retire_server(name="tiny", namespace=namespace)
    with pytest.raises(InUseError, match=rf"caches of gs://bucket cannot be disabled: {namespace}/other"):
        retire_cache(release_root=ROOT, zones=["us-central1-a"])


def test_deleting_a_release_leaves_nothing_of_it_and_all_of_the_next(root: str, namespace: str) -> None:
    before = {path for path in Path(root).rglob("*") if path.is_file() and OTHER_SHA in str(path)}
    assert retire_releases(release_root=root, releases=[f"{release_of(root)}/"]) == 5
    left = {path for path in Path(root).rglob("*") if path.is_file()}
    assert left == before
    assert storage.find_release(f"{release_of(root)}/") is None
    assert retire_releases(release_root=root, releases=[release_of(root)]) == 0
    assert retire_releases(release_root=root, releases=[]) == 0


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
        retire_releases(release_root=root, releases=[uri])


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
