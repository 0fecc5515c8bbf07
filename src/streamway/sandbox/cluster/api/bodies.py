"""Reading what a client sent: bodies in JSON or YAML, delete options, and who writes."""

import json
from typing import Any

import yaml
from aiohttp import web

from streamway.sandbox.cluster.api import protobuf
from streamway.sandbox.cluster.api.caller import Caller, User
from streamway.sandbox.cluster.api.kinds import Kind
from streamway.sandbox.cluster.api.schema import load_schema
from streamway.sandbox.cluster.api.statuses import ApiError, bad_request
from streamway.sandbox.cluster.objects import Object

APPLY_PATCH = "application/apply-patch+yaml"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
# What is sent to paths whose resource is of another kind.
_OTHER_BODIES = {
    "DeleteOptions": "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
    "Eviction": "io.k8s.api.policy.v1.Eviction",
    "TokenRequest": "io.k8s.api.authentication.v1.TokenRequest",
}
PATCH_TYPES = (JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, APPLY_PATCH)


async def read_body(request: web.Request, kind: Kind | None = None) -> Any:
    """Read a body as JSON, as YAML or protobuf where the content type says so; None for an empty one.

    Args:
        request: The request.
        kind: What is sent, which protobuf cannot be read without.

    Raises:
        ApiError: 400 for a body that cannot be read, 415 for other types.
    """
    content = await request.read()
    if not content.strip():
        return None
    content_type = request.content_type
    if "protobuf" in content_type and content.startswith(protobuf.MAGIC):
        return _read_protobuf(content, kind)
    if "protobuf" in content_type or "cbor" in content_type:
        known = "application/json, application/yaml"
        text = f"the body of the request was in an unknown format - accepted media types include: {known}"
        raise ApiError(415, "UnsupportedMediaType", text, {})
    try:
        return json.loads(content)
    except ValueError as error:
        if "yaml" not in content_type:
            raise bad_request(f"the object provided is unrecognized: {error}") from error
    try:
        return yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise bad_request(f"error decoding YAML: {error}") from error


def _read_protobuf(content: bytes, kind: Kind | None) -> Object:
    """Read a protobuf body, whose envelope names its kind: an object of the resource, or options."""
    said = protobuf.kind_of(content)
    schema = load_schema()
    if kind is not None and kind.name == said:
        node = schema.root(kind)
    else:
        name = _OTHER_BODIES.get(said)
        if name is None:
            raise bad_request(f"the kind in the data ({said}) does not match the expected kind")
        node = schema.named(name)
    return protobuf.read_message(protobuf.unwrap(content), node)


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
