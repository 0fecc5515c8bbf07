"""Compiled pipelines in a template repository, from which the Vertex AI page offers them to whoever opens it."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import requests

from streamway.errors import LaunchError, ServiceUnreachableError

logger = logging.getLogger("streamway.launch")

_TAG = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")


@dataclass(frozen=True, kw_only=True)
class PublishedTemplate:
    """One template as it now stands in the repository.

    Args:
        name: Its package.
        version: Hash of the compiled file, as `sha256:...`.
        tags: Tags that point to it.
        uri: Address to start it from, by its newest tag or else its version.
        was_there: Whether this very version was in the repository before.
    """

    name: str
    version: str
    tags: tuple[str, ...]
    uri: str
    was_there: bool


def publish_template(pipeline_path: Path, repository_url: str, *, tags: Sequence[str] = ()) -> PublishedTemplate:
    """Upload a compiled pipeline, and read back that its tags point to it.

    Args:
        pipeline_path: The compiled file.
        repository_url: https://LOCATION-kfp.pkg.dev/PROJECT/REPOSITORY.
        tags: Tags to set; one that points to another version is moved.

    Raises:
        LaunchError: the repository refuses, or a tag does not point to what was uploaded.
    """
    for tag in tags:
        if not _TAG.fullmatch(tag):
            raise LaunchError(
                f"{tag!r} is not a tag; expected small letters, digits, '.', '_' and '-'.",
                next_step="Choose another tag, such as latest or v1.",
            )
    try:
        return _publish(pipeline_path, repository_url.rstrip("/"), tuple(dict.fromkeys(tags)))
    except requests.HTTPError as error:
        raise _refused(error, repository_url) from error
    except requests.RequestException as error:
        raise ServiceUnreachableError(
            f"{repository_url} does not answer: {error}", next_step="Check the network and the address, then try again."
        ) from error


def _publish(pipeline_path: Path, repository_url: str, tags: tuple[str, ...]) -> PublishedTemplate:
    from google.auth import exceptions
    from kfp.registry import RegistryClient

    try:
        registry = RegistryClient(host=repository_url)
    except exceptions.DefaultCredentialsError as error:
        raise LaunchError(
            "There are no Google credentials on this machine.",
            next_step="Run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS.",
        ) from error
    known = _versions(registry, pipeline_path)
    name, version = registry.upload_pipeline(str(pipeline_path), tags=list(tags))
    for tag in tags:
        pointed = str(registry.get_tag(name, tag)["version"]).rpartition("/")[2]
        if pointed != version:
            raise LaunchError(
                f"The tag {tag} of {name} in {repository_url} points to {pointed}, not to {version}, which was just "
                "uploaded.",
                next_step="Somebody else published at the same moment: look whose version is right, and publish again.",
            )
    logger.info("%s is in %s as %s", name, repository_url, version)
    return PublishedTemplate(
        name=name,
        version=version,
        tags=tags,
        uri=f"{repository_url}/{name}/{tags[-1] if tags else version}",
        was_there=version in known,
    )


def _versions(registry: object, pipeline_path: Path) -> set[str]:
    """Return the versions that the repository has of this pipeline."""
    import yaml

    name = yaml.safe_load(pipeline_path.read_text(encoding="utf-8"))["pipelineInfo"]["name"]
    try:
        listed = registry.list_versions(name)  # type: ignore[attr-defined]
    except requests.HTTPError as error:
        if error.response is not None and error.response.status_code == 404:
            return set()
        raise
    return {str(version["name"]).rpartition("/")[2] for version in listed}


def _refused(error: requests.HTTPError, repository_url: str) -> LaunchError:
    status = error.response.status_code if error.response is not None else 0
    next_step = {
        401: "Run `gcloud auth application-default login` again.",
        403: "Grant roles/artifactregistry.writer on the repository.",
        404: "Create the repository: gcloud artifacts repositories create NAME --repository-format=kfp.",
    }.get(status, "Correct what it names, then publish again.")
    words = error.response.text.strip()[:500] if error.response is not None else str(error)
    return LaunchError(f"{repository_url} refuses with {status}: {words}", next_step=next_step)
