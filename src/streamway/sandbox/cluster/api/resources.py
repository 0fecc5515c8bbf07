"""Requests for objects: each HTTP method on a resource, turned into a call of the registry."""

import base64
import json
import random
from typing import Any

from aiohttp import web

from streamway.sandbox.cluster.api import bodies, questions
from streamway.sandbox.cluster.api.access import Access
from streamway.sandbox.cluster.api.caller import Caller
from streamway.sandbox.cluster.api.deletion import delete, evict
from streamway.sandbox.cluster.api.kinds import EVENT, NAMESPACE, NEW_EVENT, POD, Kind
from streamway.sandbox.cluster.api.new_events import from_new_event, to_new_event
from streamway.sandbox.cluster.api.patches import json_patch, merge_patch, strategic_patch
from streamway.sandbox.cluster.api.presentation import Form, read_form
from streamway.sandbox.cluster.api.registry import Registry
from streamway.sandbox.cluster.api.schema import load_schema
from streamway.sandbox.cluster.api.selectors import ObjectTest, parse_fields, parse_labels
from streamway.sandbox.cluster.api.statuses import ApiError, bad_request, expired, method_not_allowed
from streamway.sandbox.cluster.api.targets import Target
from streamway.sandbox.cluster.api.watching import Watches, WatchRequest
from streamway.sandbox.cluster.objects import (
    Object,
    clone,
    dig,
    labels_of,
    name_of,
    namespace_of,
)

# A real API server ends watches that name no timeout after half an hour to an hour.
_WATCH_SECONDS = (1800, 3600)
_TRUE = ("1", "true", "True")


class Resources:
    """The resource part of the API.

    Args:
        registry: The cluster's objects.
        watches: All open watches.
        access: Who may do what.
    """

    def __init__(self, registry: Registry, watches: Watches, access: Access) -> None:
        self._registry = registry
        self._watches = watches
        self._access = access

    async def answer(self, request: web.Request, target: Target, caller: Caller) -> web.StreamResponse:
        """Answer a request for objects.

        Raises:
            ApiError: the refusal.
        """
        if not target.kind.is_stored:
            body = await bodies.read_body(request, target.kind) or {}
            review = questions.answer(self._access, target.kind, target.namespace, body, caller)
            return _respond(201, review, caller)
        if target.verb == "watch":
            return await self._watch(request, target)
        if target.verb == "list":
            return _respond(200, self._list(request, target), caller)
        if target.verb == "deletecollection":
            return _respond(200, await self._delete_collection(request, target, caller), caller)
        code, item = await self._one(request, target, caller)
        if item.get("kind") != "Status" and not target.subresource:
            item = _form(request).one(target.kind, self._served(target.kind, item))
        return _respond(code, item, caller)

    async def _one(self, request: web.Request, target: Target, caller: Caller) -> tuple[int, Object]:
        if target.verb == "get":
            return 200, self._get(target)
        body = await bodies.read_body(request, target.kind)
        if target.verb == "create":
            return 201, self._create(target, body, caller)
        if target.verb == "update":
            return 200, self._update(target, body, caller)
        if target.verb == "patch":
            return self._patch(request, target, body, caller)
        if target.verb == "delete":
            return 200, self._delete(target, bodies.read_delete_options(request, body), caller)
        raise method_not_allowed()

    def _get(self, target: Target) -> Object:
        item = self._registry.get(_stored(target.kind), target.namespace, target.name)
        return questions.scale_of(item) if target.subresource == "scale" else item

    def _create(self, target: Target, body: Any, caller: Caller) -> Object:
        kind, namespace = target.kind, target.namespace
        if kind is POD and target.subresource == "eviction":
            return evict(self._registry, namespace, target.name, body, caller)
        if target.subresource == "token":
            return questions.issue_token(self._registry, self._access, namespace, target.name, body)
        if kind is POD and target.subresource == "binding":
            return self._bind(target, body, caller)
        if target.subresource or target.name:
            raise method_not_allowed()
        if kind is NEW_EVENT:
            return self._registry.create(EVENT, namespace, from_new_event(body), caller)
        if kind.namespaced and not namespace:
            raise bad_request("an empty namespace may not be set during creation")
        return self._registry.create(kind, namespace, body, caller)

    def _bind(self, target: Target, body: Any, caller: Caller) -> Object:
        bound = clone(self._registry.get(POD, target.namespace, target.name))
        bound["spec"]["nodeName"] = dig(body, "target", "name", default="")
        bind_pod(self._registry, target.namespace, target.name, bound, caller)
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}

    def _update(self, target: Target, body: Any, caller: Caller) -> Object:
        kind, namespace, name = _stored(target.kind), target.namespace, target.name
        if target.subresource == "scale":
            return self._rescale(target, lambda _: body, caller)
        if target.subresource == "finalize":
            finalizers = dig(body, "spec", "finalizers", default=[])
            return finalize_namespace(self._registry, name, finalizers, caller)
        return self._registry.update(kind, namespace, name, body, caller, target.subresource)

    def _patch(self, request: web.Request, target: Target, body: Any, caller: Caller) -> tuple[int, Object]:
        kind, namespace, name = _stored(target.kind), target.namespace, target.name
        content_type = request.content_type
        if content_type not in bodies.PATCH_TYPES:
            text = "the body of the request was in an unknown format - accepted media types include: " + ", ".join(
                bodies.PATCH_TYPES
            )
            raise ApiError(415, "UnsupportedMediaType", text, {})
        if content_type == bodies.APPLY_PATCH:
            if not request.query.get("fieldManager"):
                raise bad_request(
                    'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch'
                )
            force = request.query.get("force") in _TRUE
            item, is_new = self._registry.apply(
                kind, namespace, name, body, caller, force=force, subresource=target.subresource
            )
            return 201 if is_new else 200, item

        def edit(live: Object) -> Object:
            if content_type == bodies.JSON_PATCH:
                return json_patch(live, body)
            if not isinstance(body, dict):
                raise bad_request("cannot unmarshal array into Go value of type map[string]interface {}")
            if content_type == bodies.MERGE_PATCH:
                merged: Object = merge_patch(live, body)
                return merged
            return strategic_patch(live, body, load_schema().root(kind))

        if target.subresource == "scale":
            return 200, self._rescale(target, edit, caller)
        return 200, self._registry.change(kind, namespace, name, edit, caller, target.subresource)

    def _rescale(self, target: Target, edit: Any, caller: Caller) -> Object:
        def rescale(live: Object) -> Object:
            return questions.scaled(live, edit(questions.scale_of(live)))

        changed = self._registry.change(target.kind, target.namespace, target.name, rescale, caller)
        return questions.scale_of(changed)

    def _delete(self, target: Target, options: Object, caller: Caller) -> Object:
        kind = _stored(target.kind)
        if "All" in (options.get("dryRun") or []):
            caller.dry_run = True
        item = delete(self._registry, kind, target.namespace, target.name, options, caller)
        still_there = self._registry.store.get(kind, target.namespace, target.name) is not None
        if kind is POD or (still_there and not caller.dry_run):
            return item
        details = {"name": target.name, "group": kind.group, "kind": kind.plural, "uid": item["metadata"]["uid"]}
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "details": {key: value for key, value in details.items() if value},
        }

    async def _delete_collection(self, request: web.Request, target: Target, caller: Caller) -> Object:
        options = bodies.read_delete_options(request, await bodies.read_body(request))
        kind, matches = _stored(target.kind), _selection(request, target.kind)
        items = [item for item in self._registry.store.items(kind, target.namespace or None) if matches(item)]
        for item in items:
            delete(self._registry, kind, namespace_of(item), name_of(item), options, caller)
        return _form(request).many(target.kind, items, {"resourceVersion": str(self._registry.store.revision)})

    def _list(self, request: web.Request, target: Target) -> Object:
        kind, store = _stored(target.kind), self._registry.store
        matches = _selection(request, target.kind)
        start, revision = self._position(request, kind)
        found = [
            item
            for item in store.items(kind, target.namespace or None)
            if matches(item) and (namespace_of(item), name_of(item)) > start
        ]
        metadata: Object = {"resourceVersion": str(revision)}
        limit = int(request.query.get("limit") or 0)
        if limit and len(found) > limit:
            metadata["remainingItemCount"] = len(found) - limit
            found = found[:limit]
            metadata["continue"] = _token(revision, found[-1])
        shown = [self._served(target.kind, item) for item in found]
        return _form(request).many(target.kind, shown, metadata)

    def _position(self, request: web.Request, kind: Kind) -> tuple[tuple[str, str], int]:
        """Tell behind which object a list goes on, and at which revision it was begun."""
        store, token = self._registry.store, request.query.get("continue", "")
        if not token:
            return ("", ""), store.revision
        try:
            position = json.loads(base64.urlsafe_b64decode(token))
        except ValueError as error:
            raise bad_request("continue key is not valid: " + str(error)) from error
        if store.changes_since(kind, position["revision"]) is None:
            raise expired("The provided continue parameter is too old to display a consistent list result.")
        return (position["namespace"], position["name"]), position["revision"]

    async def _watch(self, request: web.Request, target: Target) -> web.StreamResponse:
        query, kind = request.query, target.kind
        version = query.get("resourceVersion", "")
        initial = query.get("sendInitialEvents") in _TRUE
        timeout = int(query.get("timeoutSeconds") or 0) or random.randint(*_WATCH_SECONDS)
        name = target.name
        selected = _selection(request, kind)
        wanted = WatchRequest(
            kind=kind,
            namespace=target.namespace,
            matches=lambda item: selected(item) and name in ("", name_of(item)),
            revision=None if initial or version in ("", "0") else _revision(version),
            bookmarks=query.get("allowWatchBookmarks") in _TRUE,
            initial_events=initial,
            timeout_seconds=float(timeout),
            form=_form(request),
            present=lambda item: self._served(kind, item),
        )
        return await self._watches.serve(request, wanted, _stored(kind))

    def _served(self, kind: Kind, item: Object) -> Object:
        return to_new_event(item) if kind is NEW_EVENT else item


def finalize_namespace(registry: Registry, name: str, finalizers: list[str], caller: Caller) -> Object:
    """Change what a namespace waits for; one that waits for nothing and is being deleted goes away."""
    item: Object = clone(registry.get(NAMESPACE, "", name))
    item["spec"]["finalizers"] = finalizers
    if caller.dry_run:
        return item
    metadata = item["metadata"]
    if metadata.get("deletionTimestamp") and not finalizers and not metadata.get("finalizers"):
        return registry.store.remove(NAMESPACE, "", name) or item
    return registry.store.put(NAMESPACE, item)


def bind_pod(registry: Registry, namespace: str, name: str, bound: Object, caller: Caller) -> Object:
    """Store a pod that was given a node, which no ordinary update may do."""
    live = registry.get(POD, namespace, name)
    if dig(live, "spec", "nodeName"):
        text = f'pod {name} is already assigned to node "{live["spec"]["nodeName"]}"'
        raise ApiError(409, "Conflict", f'Operation cannot be fulfilled on pods/binding "{name}": {text}', {})
    return live if caller.dry_run else registry.store.put(POD, bound)


def _stored(kind: Kind) -> Kind:
    return EVENT if kind is NEW_EVENT else kind


def _revision(version: str) -> int:
    try:
        return int(version)
    except ValueError as error:
        raise bad_request(f'Invalid value: "{version}": strconv.ParseUint: parsing "{version}"') from error


def _selection(request: web.Request, kind: Kind) -> ObjectTest:
    by_labels = parse_labels(request.query.get("labelSelector", ""))
    by_fields = parse_fields(_stored(kind), request.query.get("fieldSelector", ""))
    return lambda item: by_labels(labels_of(item)) and by_fields(item)


def _form(request: web.Request) -> Form:
    return read_form(request.headers.get("Accept", ""), request.query.get("includeObject", ""))


def _token(revision: int, last: Object) -> str:
    position = {"revision": revision, "namespace": namespace_of(last), "name": name_of(last)}
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode()


def _respond(code: int, body: Object, caller: Caller) -> web.Response:
    response = web.Response(
        status=code,
        body=json.dumps(body, separators=(",", ":")).encode(),
        content_type="application/json",
    )
    for warning in caller.warnings:
        text = warning.replace("\\", "\\\\").replace('"', '\\"')
        response.headers.add("Warning", f'299 - "{text}"')
    return response
