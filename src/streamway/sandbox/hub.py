"""A Hugging Face Hub on this machine, so that the real client pulls models without leaving it.

It answers the part of the Hub's HTTP API that `huggingface_hub` uses to read models, word for word where the
client looks at words: error codes and messages in headers, entity tags, redirects of large files to signed
addresses of another origin that expire. Writing happens on disk (hub_repository.add_commit).

    python -m streamway.sandbox.hub --state DIR --port 0

Repositories are in DIR/hub/repos. DIR/hub/tokens.json holds the tokens that are accepted and may change while
the server runs: {"<token>": {"name": "reader", "models": ["org/*"]}} where `models` are patterns of private and
gated models that the token opens. Beside the Hub's own paths:

    /sandbox/faults, /sandbox/counters   see streamway.sandbox.faults
    POST /sandbox/links/expire           every signed address given so far is refused from now on
    POST /sandbox/ranges/ignore          {"times": 2}: ranged requests get the whole file with status 200
"""

import argparse
import asyncio
import hashlib
import logging
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from aiohttp import web

from streamway.sandbox import hub_descriptions as descriptions
from streamway.sandbox.faults import Counters, FaultTable, admin_routes, fault_middleware
from streamway.sandbox.hub_files import LinkSigner, serve_blob
from streamway.sandbox.hub_repository import (
    Commit,
    HubFile,
    Repository,
    find_repository,
    list_repositories,
    pointer_text,
)
from streamway.sandbox.processes import announce, die_with_parent, read_json

log = logging.getLogger("streamway.sandbox.hub")

# Entries on one page of a tree listing (huggingface_hub, HfApi.list_repo_tree) and of a list of commits.
_TREE_PAGE = 1000
_EXPANDED_TREE_PAGE = 50
_COMMITS_PAGE = 50
# Readable in a gated repository without having been admitted.
_OPEN_FILES = ("README.md", ".gitattributes")
_MODEL = r"{model:[^/]+(?:/[^/]+)?}"


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Who asks.

    Args:
        name: Name of the token's owner; empty for somebody without a token.
        patterns: Private and gated models that are open to them.
    """

    name: str = ""
    patterns: tuple[str, ...] = ()

    def may_open(self, model_id: str) -> bool:
        return any(fnmatchcase(model_id, pattern) for pattern in self.patterns)


class Hub:
    """The server's handlers.

    Args:
        root: Folder of the part's data: repos/ and tokens.json are in it.
        signer: Makes and checks the addresses of large files.
    """

    def __init__(self, root: Path, signer: LinkSigner) -> None:
        self._repositories = root / "repos"
        self._tokens_path = root / "tokens.json"
        self._signer = signer
        self._ranges_to_ignore = 0

    def application(self) -> web.Application:
        """Return the application, with its faults and counters."""
        table, counters = FaultTable(), Counters()
        middleware = fault_middleware(table, counters, subject=_subject)
        application = web.Application(middlewares=[middleware, _word_errors])
        api = f"/api/models/{_MODEL}"
        application.add_routes(
            [
                *admin_routes(table, counters),
                web.post("/sandbox/links/expire", self.expire_links),
                web.post("/sandbox/ranges/ignore", self.ignore_ranges),
                web.get("/api/whoami-v2", self.who_am_i),
                web.get("/api/models", self.models),
                web.get(f"{api}/revision/{{revision}}", self.model),
                web.get(f"{api}/tree/{{revision}}", self.tree),
                web.get(f"{api}/tree/{{revision}}/{{path:.+}}", self.tree),
                web.post(f"{api}/paths-info/{{revision}}", self.paths),
                web.get(f"{api}/commits/{{revision}}", self.commits),
                web.get(f"{api}/refs", self.refs),
                web.get(f"{api}/auth-check", self.auth_check),
                web.get(api, self.model),
                web.get(f"/api/resolve-cache/models/{_MODEL}/{{revision}}/{{path:.+}}", self.cached_file),
                web.get("/cdn/{model:[^/]+(?:/[^/]+)?}/{sha256:[0-9a-f]{64}}/{path:.+}", self.cdn),
                web.get(f"/{_MODEL}/resolve/{{revision}}/{{path:.+}}", self.resolve),
                web.get(f"/{_MODEL}/raw/{{revision}}/{{path:.+}}", self.raw),
            ]
        )
        return application

    async def who_am_i(self, request: web.Request) -> web.Response:
        reader = self._reader(request)
        if not reader.name:
            raise _refusal(401, "", "Invalid username or password.")
        auth = {"type": "access_token", "accessToken": {"displayName": reader.name, "role": "read"}}
        return web.json_response({"type": "user", "name": reader.name, "orgs": [], "auth": auth})

    async def models(self, request: web.Request) -> web.Response:
        reader = self._reader(request)
        search = request.query.get("search", "").lower()
        author = request.query.get("author")
        found = []
        for repository in list_repositories(self._repositories):
            commit = repository.resolve("main")
            hidden = repository.settings.private and not reader.may_open(repository.model_id)
            if commit is None or hidden or search not in repository.model_id.lower():
                continue
            entry = descriptions.describe_model(repository, commit, blobs=False, security=False)
            if author in (None, entry["author"]):
                found.append(entry)
        return web.json_response(found)

    async def model(self, request: web.Request) -> web.Response:
        repository, commit = self._at(request)
        query = request.query
        described = descriptions.describe_model(
            repository, commit, blobs=_truth(query.get("blobs")), security=_truth(query.get("securityStatus"))
        )
        wanted = query.getall("expand", [])
        if wanted:
            described = {key: value for key, value in described.items() if key in {"_id", "id", *wanted}}
        return _unless_known(request, web.json_response(described))

    async def tree(self, request: web.Request) -> web.Response:
        repository, commit = self._at(request)
        expand = _truth(request.query.get("expand"))
        recursive = _truth(request.query.get("recursive"))
        folder = request.match_info.get("path", "")
        entries = descriptions.describe_tree(repository, commit, folder, recursive=recursive, expand=expand)
        if entries is None:
            raise _refusal(404, "EntryNotFound", f'{folder} does not exist on "{request.match_info["revision"]}"')
        return _page(request, entries, _EXPANDED_TREE_PAGE if expand else _TREE_PAGE)

    async def paths(self, request: web.Request) -> web.Response:
        repository, commit = self._at(request)
        if request.content_type == "application/json":
            form = await request.json()
            paths, expand = list(form.get("paths", [])), bool(form.get("expand"))
        else:
            fields = await request.post()
            paths = [str(value) for value in fields.getall("paths", [])]
            expand = _truth(str(fields.get("expand", "")))
        return web.json_response(descriptions.describe_paths(repository, commit, paths, expand=expand))

    async def commits(self, request: web.Request) -> web.Response:
        repository, commit = self._at(request)
        formatted = "formatted" in request.query.getall("expand[]", [])
        entries = [descriptions.describe_commit(one, formatted=formatted) for one in repository.history(commit)]
        return _page(request, entries, _COMMITS_PAGE)

    async def refs(self, request: web.Request) -> web.Response:
        described = descriptions.describe_refs(self._repository(request).refs)
        if not request.query.get("include_prs"):
            described.pop("pullRequests")
        return web.json_response(described)

    async def auth_check(self, request: web.Request) -> web.Response:
        self._admit(self._repository(request), self._reader(request))
        return web.Response()

    async def resolve(self, request: web.Request) -> web.StreamResponse:
        """Answer with where a file is: large ones at a signed address of another origin, small ones nearby."""
        repository, commit, file = self._file(request)
        common = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        model = quote(repository.model_id)
        if file.lfs:
            headers = {
                **common,
                "X-Linked-Size": str(file.size_bytes),
                "X-Linked-ETag": f'"{file.sha256}"',
                "Location": self._signer.link(f"/cdn/{model}/{file.sha256}/{quote(file.path)}"),
            }
            return web.Response(status=302, headers=headers, text="Found. Redirecting to the stored file")
        path = f"/api/resolve-cache/models/{model}/{commit.sha}/{quote(file.path)}"
        etag = f'"{file.etag}"'
        location = f"{path}?{urlencode({request.path: '', 'etag': etag})}"
        headers = {**common, "ETag": etag, "Location": location}
        return web.Response(status=307, headers=headers, text="Temporary Redirect. Redirecting to the file")

    async def cached_file(self, request: web.Request) -> web.StreamResponse:
        repository, commit, file = self._file(request)
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{file.etag}"'}
        return await self._send(request, repository, file, headers)

    async def raw(self, request: web.Request) -> web.StreamResponse:
        repository, commit, file = self._file(request)
        if file.lfs:
            return web.Response(text=pointer_text(file), headers={"X-Repo-Commit": commit.sha})
        return await self._send(request, repository, file, {"ETag": f'"{file.oid}"'})

    async def cdn(self, request: web.Request) -> web.StreamResponse:
        """Send a large file to whoever holds a signed address that has not expired; no token is asked for."""
        if not self._signer.accepts(request):
            # As a CDN words it (CloudFront's answer to an expired signed URL).
            text = '<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Access denied</Message></Error>'
            return web.Response(status=403, text=text, content_type="application/xml")
        info = request.match_info
        repository = find_repository(self._repositories, info["model"])
        blob = repository.path / "blobs" / info["sha256"] if repository else None
        if blob is None or not blob.is_file():
            return web.Response(status=404, text="Not Found")
        name = info["path"].rpartition("/")[2]
        headers = {"ETag": f'"{info["sha256"]}"', "Content-Disposition": f'inline; filename="{name}";'}
        return await serve_blob(request, blob, headers, ignore_range=self._ignores_range(request))

    async def expire_links(self, request: web.Request) -> web.Response:
        self._signer.forget()
        return web.json_response({})

    async def ignore_ranges(self, request: web.Request) -> web.Response:
        self._ranges_to_ignore = int((await request.json())["times"])
        return web.json_response({"times": self._ranges_to_ignore})

    async def _send(
        self, request: web.Request, repository: Repository, file: HubFile, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        blob = repository.blob_path(file)
        return await serve_blob(request, blob, headers, ignore_range=self._ignores_range(request))

    def _ignores_range(self, request: web.Request) -> bool:
        if "Range" not in request.headers or self._ranges_to_ignore <= 0:
            return False
        self._ranges_to_ignore -= 1
        return True

    def _reader(self, request: web.Request) -> Reader:
        given = request.headers.get("Authorization", "")
        if not given:
            return Reader()
        known = (read_json(self._tokens_path) or {}).get(given.removeprefix("Bearer ").strip())
        if known is None:
            raise _refusal(401, "", "Invalid credentials in Authorization header")
        return Reader(name=known["name"], patterns=tuple(known.get("models", ())))

    def _repository(self, request: web.Request) -> Repository:
        """Return what is asked for, if this reader may know that it exists."""
        reader = self._reader(request)
        model_id = request.match_info["model"]
        repository = find_repository(self._repositories, model_id)
        settings = repository.settings if repository else None
        if repository is None or (settings and settings.private and not reader.may_open(model_id)):
            if reader.name:
                raise _refusal(404, "RepoNotFound", "Repository not found")
            raise _refusal(401, "RepoNotFound", "Invalid username or password.")
        if settings and settings.moved_to:
            raise _moved(request, model_id, settings.moved_to)
        if settings and settings.disabled:
            raise _refusal(403, "", "Access to this resource is disabled.")
        return repository

    def _at(self, request: web.Request) -> tuple[Repository, Commit]:
        repository = self._repository(request)
        revision = request.match_info.get("revision", "main")
        commit = repository.resolve(revision)
        if commit is None:
            raise _refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, commit

    def _file(self, request: web.Request) -> tuple[Repository, Commit, HubFile]:
        repository = self._repository(request)
        path = request.match_info["path"]
        if path not in _OPEN_FILES:
            self._admit(repository, self._reader(request))
        repository, commit = self._at(request)
        if path not in commit.files:
            raise _refusal(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit.sha})
        return repository, commit, commit.files[path]

    def _admit(self, repository: Repository, reader: Reader) -> None:
        model_id = repository.model_id
        if not repository.settings.gated or reader.may_open(model_id):
            return
        restricted = f"Access to model {model_id} is restricted"
        if not reader.name:
            advice = "You must have access to it and be authenticated to access it. Please log in."
            raise _refusal(401, "GatedRepo", f"{restricted}. {advice}")
        advice = f"Visit https://huggingface.co/{model_id} to ask for access."
        raise _refusal(403, "GatedRepo", f"{restricted} and you are not in the authorized list. {advice}")


class RefusedError(Exception):
    """An answer that a handler cannot go on from.

    Args:
        response: What to answer.
    """

    def __init__(self, response: web.Response) -> None:
        super().__init__(response.status)
        self.response = response


@web.middleware
async def _word_errors(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        return await handler(request)
    except RefusedError as refusal:
        return refusal.response
    except web.HTTPNotFound:
        return _refusal(404, "", "Not Found").response


def _refusal(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> RefusedError:
    """Word a refusal as the Hub does: the client tells the cases apart by these two headers."""
    given = {**({"X-Error-Code": code} if code else {}), "X-Error-Message": message, **(headers or {})}
    if status == 401:
        given["WWW-Authenticate"] = 'Bearer realm="Authentication required", charset="UTF-8"'
    return RefusedError(web.json_response({"error": message}, status=status, headers=given))


def _moved(request: web.Request, model_id: str, new_id: str) -> RefusedError:
    location = request.rel_url.raw_path_qs.replace(quote(model_id), quote(new_id), 1)
    response = web.Response(status=307, headers={"Location": location}, text=f"Redirecting to {location}")
    return RefusedError(response)


def _page(request: web.Request, entries: list[dict[str, Any]], size: int) -> web.Response:
    """Answer with one page, and a Link header to the next one where there is more."""
    start = int(request.query.get("cursor", "0"))
    response = web.json_response(entries[start : start + size])
    if start + size < len(entries):
        following = request.url.update_query(cursor=str(start + size))
        response.headers["Link"] = f'<{following}>; rel="next"'
    response.headers["X-Total-Count"] = str(len(entries))
    return response


def _unless_known(request: web.Request, response: web.Response) -> web.Response:
    """Give an answer its weak entity tag, as the Hub does, and leave it out where the client has it already."""
    body = response.body if isinstance(response.body, bytes) else b""
    etag = f'W/"{len(body):x}-{hashlib.sha1(body, usedforsecurity=False).hexdigest()[:27]}"'
    if request.headers.get("If-None-Match") == etag:
        return web.Response(status=304, headers={"ETag": etag})
    response.headers["ETag"] = etag
    return response


def _subject(request: web.Request) -> str:
    """Name the file that a request is about, for the counters: `org/name/path`, or the model alone."""
    info = request.match_info
    return "/".join(info[key] for key in ("model", "path") if key in info)


def _truth(value: str | None) -> bool:
    return value is not None and value.lower() in ("1", "true")


async def serve(state_path: Path, port: int, link_seconds: float) -> None:
    """Serve until SIGTERM or SIGINT; the address is in DIR/hub.json."""
    root = state_path / "hub"
    (root / "repos").mkdir(parents=True, exist_ok=True)
    signer = LinkSigner(valid_seconds=link_seconds)
    runner = web.AppRunner(Hub(root, signer).application(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    # Large files come from an origin of their own, so that clients must not carry their token there.
    sites = [web.TCPSite(runner, "127.0.0.1", port), web.TCPSite(runner, "127.0.0.1", 0)]
    for site in sites:
        await site.start()
    url, signer.origin = (f"http://127.0.0.1:{address[1]}" for address in runner.addresses)
    environment = {"HF_ENDPOINT": url, "HF_HUB_DISABLE_TELEMETRY": "1"}
    announce(state_path, "hub", url=url, environment=environment, cdn_url=signer.origin)
    log.info("Hub serves %d models at %s", len(list_repositories(root / "repos")), url)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    await runner.cleanup()


def main(arguments: list[str]) -> None:
    """Run the part."""
    parser = argparse.ArgumentParser(prog="python -m streamway.sandbox.hub", description="A local Hub")
    parser.add_argument("--state", type=Path, required=True, help="folder of the sandbox")
    parser.add_argument("--port", type=int, default=0, help="0 for any free port")
    parser.add_argument("--link-seconds", type=float, default=3600.0, help="how long signed addresses work")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    die_with_parent()
    asyncio.run(serve(given.state, given.port, given.link_seconds))


if __name__ == "__main__":
    main(sys.argv[1:])
