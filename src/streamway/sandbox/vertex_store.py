"""What the Vertex AI part remembers beside its runs: descriptions, schedules and templates.

Everything is JSON on disk, so that a sandbox which is stopped and started again still has its jobs and schedules.
"""

import json
import os
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from aiohttp import web

from streamway.sandbox.processes import read_json, write_json

Resource = dict[str, Any]

_TERM = re.compile(r"""(?P<key>[\w.\-]+)\s*(?P<sign>!=|<=|>=|=|<|>|:)\s*(?P<value>"[^"]*"|[^\s"]+)""")
_STATUS_NAMES = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 409: "ALREADY_EXISTS", 412: "FAILED_PRECONDITION"}
_PAGE_SIZE = 100


def read_time(text: str) -> datetime:
    """Read a time of protobuf's JSON.

    Raises:
        web.HTTPException: it is none.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise refusal(400, f"{text!r} is not an RFC 3339 time.") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class Shelf:
    """Named JSON objects in one folder, in memory and on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        found = ((path.stem, read_json(path)) for path in sorted(folder.glob("*.json")))
        self.entries: dict[str, Resource] = {name: entry for name, entry in found if entry is not None}

    def put(self, name: str, entry: Resource) -> Resource:
        """Keep an object."""
        self.entries[name] = entry
        write_json(self._folder / f"{name}.json", entry)
        return entry

    def drop(self, name: str) -> None:
        """Forget an object."""
        del self.entries[name]
        (self._folder / f"{name}.json").unlink(missing_ok=True)


def sibling_environment(state_path: Path) -> dict[str, str]:
    """Gather what the parts of the sandbox say that a client must have in its environment."""
    found: dict[str, str] = {}
    for path in sorted(state_path.glob("*.json")):
        environment = (read_json(path) or {}).get("environment")
        if isinstance(environment, Mapping):
            found.update({str(name): str(value) for name, value in environment.items()})
    return found


def new_id() -> str:
    """Return an id that is unique."""
    return str(uuid.UUID(bytes=os.urandom(16), version=4))


def new_number() -> str:
    """Return a long decimal id, as Vertex AI gives to schedules and operations."""
    return str(int.from_bytes(os.urandom(7), "big") | 1 << 54)


def refusal(status: int, message: str, *, name: str = "") -> web.HTTPException:
    """Word a refusal as Google's APIs do (https://cloud.google.com/apis/design/errors)."""
    code = name or _STATUS_NAMES.get(status, "UNKNOWN")
    # A failed precondition is 400 on the wire.
    status = 400 if status == 412 else status
    body = json.dumps({"error": {"code": status, "message": message, "status": code}})
    error = web.HTTPBadRequest(text=body, content_type="application/json")
    error.set_status(status)
    return error


async def read_object(request: web.Request) -> Resource:
    """Read a request's body as a JSON object."""
    try:
        body = await request.json()
    except ValueError as error:
        raise refusal(400, f"Invalid JSON payload received: {error}") from error
    if not isinstance(body, dict):
        raise refusal(400, "Invalid JSON payload received: expected an object.")
    return body


def whole_numbers(values: Mapping[str, Any], definitions: Mapping[str, Any]) -> Resource:
    """Make whole numbers of what JSON and protobuf carry as floats, where a pipeline declares them so."""
    return {
        name: int(value) if definitions.get(name, {}).get("parameterType") == "NUMBER_INTEGER" else value
        for name, value in values.items()
    }


def select(resources: list[Resource], expression: str) -> list[Resource]:
    """Keep the resources that a filter of Google's list methods names (https://google.aip.dev/160).

    Raises:
        web.HTTPException: the filter cannot be read.
    """
    rest = expression.strip()
    while rest:
        match = _TERM.match(rest)
        if match is None:
            raise refusal(400, f"Invalid filter: {expression}")
        key, sign, value = match["key"], match["sign"], match["value"].strip('"')
        resources = [resource for resource in resources if _holds(resource, key, sign, value)]
        rest = re.sub(r"^\s*AND\b", "", rest[match.end() :], flags=re.IGNORECASE).strip()
    return resources


def page(request: web.Request, key: str, resources: list[Resource]) -> Resource:
    """Return one page of a list, newest first unless asked otherwise, with a token for the next."""
    order, _, direction = request.query.get("orderBy", "create_time desc").partition(" ")
    resources = sorted(resources, key=lambda resource: str(_field(resource, order)), reverse=direction == "desc")
    start = int(request.query.get("pageToken") or 0)
    end = start + int(request.query.get("pageSize") or _PAGE_SIZE)
    return {key: resources[start:end], **({"nextPageToken": str(end)} if end < len(resources) else {})}


def camel(name: str) -> str:
    """Return a field's name as JSON has it."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _holds(resource: Resource, key: str, sign: str, value: str) -> bool:
    found = str(_field(resource, key))
    if key == "labels" and sign == ":":
        return value in resource.get("labels", {})
    if sign in ("=", ":"):
        return fnmatchcase(found, value) if "*" in value else found == value
    if sign == "!=":
        return found != value
    left, right = read_time(found or "1970-01-01T00:00:00Z"), read_time(value)
    return {"<": left < right, ">": left > right, "<=": left <= right, ">=": left >= right}[sign]


def _field(resource: Resource, key: str) -> Any:
    if key.startswith("labels."):
        return resource.get("labels", {}).get(key.removeprefix("labels."), "")
    return resource.get(camel(key), "")
