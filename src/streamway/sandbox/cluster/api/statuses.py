"""Every refusal of the API server, in the words and the metav1.Status form that clients parse."""

import json
from dataclasses import dataclass
from typing import Any

from streamway.sandbox.cluster.api.kinds import Kind
from streamway.sandbox.cluster.objects import Object


class ApiError(Exception):
    """A request that ends with a Status instead of an object.

    Args:
        code: HTTP status.
        reason: Machine-readable reason, such as NotFound.
        message: What a person reads.
        details: The Status' details.
    """

    def __init__(self, code: int, reason: str, message: str, details: Object | None = None) -> None:
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details
        super().__init__(message)

    def status(self) -> Object:
        """Write the Status object."""
        body: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }
        if self.details:
            body["details"] = self.details
        return body


@dataclass(frozen=True, kw_only=True)
class Cause:
    """One reason why an object is invalid.

    Args:
        reason: FieldValueRequired, FieldValueInvalid, ...
        field: Path of the field, such as spec.template.spec.containers[0].image.
        message: What is wrong, as it appears after the path.
    """

    reason: str
    field: str
    message: str


def required(field: str, note: str = "") -> Cause:
    """Say that a field is missing."""
    return Cause(reason="FieldValueRequired", field=field, message="Required value" + (f": {note}" if note else ""))


def invalid(field: str, value: Any, note: str) -> Cause:
    """Say that a field's value is wrong."""
    return Cause(reason="FieldValueInvalid", field=field, message=f"Invalid value: {_shown(value)}: {note}")


def forbidden_field(field: str, note: str) -> Cause:
    """Say that a field may not be set or changed."""
    return Cause(reason="FieldValueForbidden", field=field, message=f"Forbidden: {note}")


def duplicate(field: str, value: Any) -> Cause:
    """Say that a value occurs twice."""
    return Cause(reason="FieldValueDuplicate", field=field, message=f"Duplicate value: {_shown(value)}")


def unsupported(field: str, value: Any, supported: list[str]) -> Cause:
    """Say that a value is none of the known ones."""
    listed = ", ".join(json.dumps(one) for one in supported)
    message = f"Unsupported value: {_shown(value)}: supported values: {listed}"
    return Cause(reason="FieldValueNotSupported", field=field, message=message)


def unknown_reference(field: str, value: Any) -> Cause:
    """Say that a value refers to nothing."""
    return Cause(reason="FieldValueNotFound", field=field, message=f"Not found: {_shown(value)}")


def _shown(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _details(kind: Kind, name: str, **more: Any) -> Object:
    details: Object = {"name": name, "group": kind.group, "kind": kind.plural, **more}
    return {key: value for key, value in details.items() if value}


def not_found(kind: Kind, name: str) -> ApiError:
    return ApiError(404, "NotFound", f'{kind.group_resource} "{name}" not found', _details(kind, name))


def no_such_path() -> ApiError:
    return ApiError(404, "NotFound", "the server could not find the requested resource", {})


def already_exists(kind: Kind, name: str) -> ApiError:
    message = f'{kind.group_resource} "{name}" already exists'
    return ApiError(409, "AlreadyExists", message, _details(kind, name))


def conflict(kind: Kind, name: str, why: str) -> ApiError:
    message = f'Operation cannot be fulfilled on {kind.group_resource} "{name}": {why}'
    return ApiError(409, "Conflict", message, _details(kind, name))


def stale(kind: Kind, name: str) -> ApiError:
    why = "the object has been modified; please apply your changes to the latest version and try again"
    return conflict(kind, name, why)


def invalid_object(kind: Kind, name: str, causes: list[Cause]) -> ApiError:
    """Refuse an object with everything that is wrong with it."""
    texts = [f"{cause.field}: {cause.message}" for cause in causes]
    listed = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    shown = [{"reason": cause.reason, "message": cause.message, "field": cause.field} for cause in causes]
    details = _details(kind, name, causes=shown) | {"kind": kind.name}
    return ApiError(422, "Invalid", f'{kind.group_kind} "{name}" is invalid: {listed}', details)


def bad_request(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


def forbidden(kind: Kind, name: str, why: str) -> ApiError:
    shown = f'{kind.group_resource} "{name}"' if name else kind.group_resource
    return ApiError(403, "Forbidden", f"{shown} is forbidden: {why}", _details(kind, name))


def unauthorized() -> ApiError:
    return ApiError(401, "Unauthorized", "Unauthorized")


def method_not_allowed() -> ApiError:
    message = "the server does not allow this method on the requested resource"
    return ApiError(405, "MethodNotAllowed", message, {})


def unavailable(message: str) -> ApiError:
    return ApiError(503, "ServiceUnavailable", message)


def expired(message: str) -> ApiError:
    return ApiError(410, "Expired", message)
