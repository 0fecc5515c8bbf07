"""What the Vertex AI page offers is what was compiled, and a tag points to what was just published."""

import json
from pathlib import Path
from typing import Any

import pytest
from kfp.registry import RegistryClient

from streamway.errors import LaunchError, ServiceUnreachableError
from streamway.launch.publish import publish_template


@pytest.fixture
def repository(queueing: Any) -> str:
    return f"{queueing.announced['registry_url']}/{queueing.project}/templates"


def test_a_published_template_is_the_compiled_file(repository: str, compiled: Path, tmp_path: Path) -> None:
    published = publish_template(compiled, repository, tags=["v1", "latest"])
    assert (published.name, published.was_there) == ("small-talk", False)
    assert published.uri == f"{repository}/small-talk/latest"
    fetched = RegistryClient(host=repository).download_pipeline(
        "small-talk", tag="v1", file_name=str(tmp_path / "fetched.yaml")
    )
    assert Path(fetched).read_bytes() == compiled.read_bytes()


def test_publishing_again_makes_no_new_version(repository: str, compiled: Path) -> None:
    first = publish_template(compiled, repository)
    again = publish_template(compiled, repository + "/", tags=["v2"])
    assert (again.version, again.was_there) == (first.version, True)
    assert len(RegistryClient(host=repository).list_versions("small-talk")) == 1


def test_a_tag_moves_to_the_new_version(repository: str, compiled: Path, tmp_path: Path) -> None:
    first = publish_template(compiled, repository, tags=["latest"])
    changed = tmp_path / "changed.yaml"
    changed.write_text(compiled.read_text() + "# another build\n")
    second = publish_template(changed, repository, tags=["latest"])
    assert first.version != second.version
    assert RegistryClient(host=repository).get_tag("small-talk", "latest")["version"].endswith(second.version)


def test_a_tag_that_points_elsewhere_is_told(queueing: Any, repository: str, compiled: Path) -> None:
    queueing.fail_next(
        "GET",
        "*/tags/latest",
        status=200,
        body=json.dumps({"version": "packages/small-talk/versions/sha256:0"}),
        headers={"Content-Type": "application/json"},
    )
    with pytest.raises(LaunchError, match=r"tag latest .* points to sha256:0, not to sha256:"):
        publish_template(compiled, repository, tags=["latest"])


@pytest.mark.parametrize(
    ("status", "advice"), [(403, "artifactregistry.writer"), (404, "repositories create"), (401, "auth")]
)
def test_a_refusal_says_what_to_grant(queueing: Any, repository: str, compiled: Path, status: int, advice: str) -> None:
    queueing.fail_next("POST", "/registry/*", status=status, body="no")
    with pytest.raises(LaunchError, match=f"refuses with {status}: no") as caught:
        publish_template(compiled, repository)
    assert advice in caught.value.next_step


def test_a_wrong_tag_and_a_silent_repository_are_told(compiled: Path) -> None:
    with pytest.raises(LaunchError, match="'Latest!' is not a tag"):
        publish_template(compiled, "http://127.0.0.1:9/p/r", tags=["Latest!"])
    with pytest.raises(ServiceUnreachableError, match="does not answer"):
        publish_template(compiled, "http://127.0.0.1:9/p/r")
