"""Reading what a client sent: bodies in JSON or YAML, delete options, and who writes."""

import json
from typing import Any

import yaml
from aiohttp import web

from streamway.sandbox.cluster.api.caller import Caller, User
from streamway.sandbox.cluster.api.statuses import ApiError, bad_request
from streamway.sandbox.cluster.objects import Object

APPLY_PATCH = "application/apply-patch+yaml"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
PATCH_TYPES = (JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, APPLY_PATCH)


async def read_body(request: web.Request) -> Any:
    """Read a body as JSON, or as YAML where the content type says so; None for an empty one.

    Raises:
        ApiError: 400 for a body that is neither, 415 for protobuf and other types.
    """
    content = await request.read()
    if not content.strip():
        return None
    kind = request.content_type
    if "protobuf" in kind or "cbor" in kind:
        known = "application/json, application/yaml"
        text = f"the body of the request was in an unknown format - accepted media types include: {known}"
        raise ApiError(415, "UnsupportedMediaType", text, {})
    try:
        return json.loads(content)
    except ValueError as error:
        if "yaml" not in kind:
            raise bad_request(f"the object provided is unrecognized: {error}") from error
    try:
        return yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise bad_request(f"error decoding YAML: {error}") from error


def read_caller(request: web.Request, user: User) -> Caller:
    """Read how a request wants to be treated.

    Raises:
        ApiError: 400 for an unknown dryRun or fieldValidation.
    """
    query = request.query
    dry_run = query.getall("dryRun", [])
    if any(value not in ("", "All") for value in dry_run):
        raise bad_request(f"Invalid value: {dry_run!r}: must be one of All")
    validation = query.get("fieldValidation", "") or "Warn"
    if validation not in ("Strict", "Warn", "Ignore"):
        raise bad_request(f"invalid fieldValidation: {validation!r}")
    agent = request.headers.get("User-Agent", "unknown").partition("/")[0]
    return Caller(
        user=user,
        manager=query.get("fieldManager", "") or agent[:128],
        dry_run="All" in dry_run,
        field_validation=validation,
    )


def read_delete_options(request: web.Request, body: Any) -> Object:
    """Read DeleteOptions, which may come in the body or in the query."""
    options: Object = dict(body) if isinstance(body, dict) else {}
    if "gracePeriodSeconds" in request.query:
        options["gracePeriodSeconds"] = int(request.query["gracePeriodSeconds"])
    if "propagationPolicy" in request.query:
        options["propagationPolicy"] = request.query["propagationPolicy"]
    return options
