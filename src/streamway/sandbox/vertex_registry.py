"""A repository of pipeline templates, in the API that kfp.registry.RegistryClient speaks.

Artifact Registry keeps compiled pipelines as packages: a version is the hash of a file, and tags point to versions.
The Vertex AI page offers what is in such a repository.
"""

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from streamway.sandbox.vertex_store import Shelf, read_object, refusal

_REPOSITORY = r"/registry/{project:[^/]+}/{repository:[^/]+}"
_PACKAGE = r"{package:[a-z0-9][a-z0-9.-]*}"
_VERSION = r"{version:sha256:[0-9a-f]{64}}"


class TemplateRegistry:
    """Handlers of the repositories.

    Args:
        folder: Where templates are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._shelf = Shelf(folder)

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the API."""
        package = f"{_REPOSITORY}/packages/{_PACKAGE}"
        tag = f"{package}/tags/{{tag:[^/]+}}"
        return [
            web.post(_REPOSITORY, self.upload),
            web.get(f"{_REPOSITORY}/packages", self.list_packages),
            web.get(package, self.get_package),
            web.delete(package, self.delete_package),
            web.get(f"{package}/versions", self.list_versions),
            web.get(f"{package}/versions/{_VERSION}", self.get_version),
            web.get(f"{package}/tags", self.list_tags),
            web.post(f"{package}/tags", self.set_tag),
            web.get(tag, self.get_tag),
            web.patch(tag, self.set_tag),
            web.get(f"{_REPOSITORY}/{_PACKAGE}/{{reference:[^/]+}}", self.download),
        ]

    async def upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        content = form.get("content")
        if not isinstance(content, web.FileField):
            raise refusal(400, "The part `content` with the template is missing.")
        text = content.file.read()
        try:
            name = yaml.safe_load(text)["pipelineInfo"]["name"]
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise refusal(400, "The content is not a compiled pipeline.") from error
        version = f"sha256:{hashlib.sha256(text).hexdigest()}"
        package = self._shelf.entries.get(self._key(request, name)) or {"name": name, "versions": {}, "tags": {}}
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        package["versions"].setdefault(version, {"createTime": now, "text": text.decode()})
        for tag in str(form.get("tags") or "").split(","):
            if tag:
                package["tags"][tag] = version
        self._shelf.put(self._key(request, name), package)
        return web.Response(text=f"{name}/{version}")

    async def download(self, request: web.Request) -> web.Response:
        package, reference = self._package(request), request.match_info["reference"]
        version = package["tags"].get(reference, reference)
        if version not in package["versions"]:
            raise refusal(404, f"There is no version or tag {reference!r} of {package['name']}.")
        return web.Response(text=package["versions"][version]["text"], content_type="application/yaml")

    async def list_packages(self, request: web.Request) -> web.Response:
        prefix = self._key(request, "")
        found = [{"name": f"packages/{key.removeprefix(prefix)}"} for key in self._shelf.entries if prefix in key]
        return web.json_response({"packages": found})

    async def get_package(self, request: web.Request) -> web.Response:
        return web.json_response({"name": f"packages/{self._package(request)['name']}"})

    async def delete_package(self, request: web.Request) -> web.Response:
        self._shelf.drop(self._key(request, self._package(request)["name"]))
        return web.json_response({"done": True})

    async def list_versions(self, request: web.Request) -> web.Response:
        package = self._package(request)
        return web.json_response({"versions": [_version(package, version) for version in package["versions"]]})

    async def get_version(self, request: web.Request) -> web.Response:
        package, version = self._package(request), request.match_info["version"]
        if version not in package["versions"]:
            raise refusal(404, f"There is no version {version} of {package['name']}.")
        return web.json_response(_version(package, version))

    async def list_tags(self, request: web.Request) -> web.Response:
        package = self._package(request)
        return web.json_response({"tags": [_tag(package, tag) for tag in package["tags"]]})

    async def get_tag(self, request: web.Request) -> web.Response:
        package, tag = self._package(request), request.match_info["tag"]
        if tag not in package["tags"]:
            raise refusal(404, f"There is no tag {tag!r} of {package['name']}.")
        return web.json_response(_tag(package, tag))

    async def set_tag(self, request: web.Request) -> web.Response:
        package = self._package(request)
        tag = request.match_info.get("tag") or request.query.get("tagId", "")
        version = str((await read_object(request)).get("version", "")).rpartition("/")[2]
        if version not in package["versions"]:
            raise refusal(404, f"There is no version {version!r} of {package['name']}.")
        if request.method == "POST" and tag in package["tags"]:
            raise refusal(409, f"The tag {tag!r} exists already.")
        package["tags"][tag] = version
        self._shelf.put(self._key(request, package["name"]), package)
        return web.json_response(_tag(package, tag))

    def _key(self, request: web.Request, package: str) -> str:
        return f"{request.match_info['project']}+{request.match_info['repository']}+{package}"

    def _package(self, request: web.Request) -> dict[str, Any]:
        package = self._shelf.entries.get(self._key(request, request.match_info["package"]))
        if package is None:
            raise refusal(404, f"There is no package {request.match_info['package']!r}.")
        return package


def _version(package: dict[str, Any], version: str) -> dict[str, Any]:
    tags = [{"name": f"packages/{package['name']}/tags/{tag}"} for tag, at in package["tags"].items() if at == version]
    return {
        "name": f"packages/{package['name']}/versions/{version}",
        "createTime": package["versions"][version]["createTime"],
        "relatedTags": tags,
    }


def _tag(package: dict[str, Any], tag: str) -> dict[str, Any]:
    name = f"packages/{package['name']}"
    return {"name": f"{name}/tags/{tag}", "version": f"{name}/versions/{package['tags'][tag]}"}
