"""The forms in which objects are answered: as they are, as a Table for `kubectl get`, or as metadata alone."""

from dataclasses import dataclass
from typing import Any

from streamway.sandbox.cluster.api.columns import columns_of
from streamway.sandbox.cluster.api.kinds import Kind
from streamway.sandbox.cluster.objects import Object


@dataclass(frozen=True, kw_only=True)
class Form:
    """What a request's Accept header wants.

    Args:
        shape: "object", "table" or "metadata".
        version: The meta.k8s.io version of the Table or metadata.
        include_object: What each row of a table carries: None, Metadata or Object.
    """

    shape: str = "object"
    version: str = "v1"
    include_object: str = "Metadata"

    def one(self, kind: Kind, item: Object) -> Object:
        """Present one object."""
        if self.shape == "table":
            return self._table(kind, [item], item["metadata"].get("resourceVersion", ""))
        return self._metadata_only(item) if self.shape == "metadata" else item

    def many(self, kind: Kind, items: list[Object], metadata: Object) -> Object:
        """Present a list."""
        if self.shape == "table":
            table = self._table(kind, items, metadata["resourceVersion"])
            return {**table, "metadata": metadata}
        if self.shape == "metadata":
            api_version = f"meta.k8s.io/{self.version}"
            shown = [self._metadata_only(item) for item in items]
            return {
                "kind": "PartialObjectMetadataList", "apiVersion": api_version, "metadata": metadata, "items": shown
            }  # fmt: skip
        bare = [{key: value for key, value in item.items() if key not in ("kind", "apiVersion")} for item in items]
        return {"kind": f"{kind.name}List", "apiVersion": kind.api_version, "metadata": metadata, "items": bare}

    def _table(self, kind: Kind, items: list[Object], revision: str) -> Object:
        columns = columns_of(kind)
        return {
            "kind": "Table",
            "apiVersion": f"meta.k8s.io/{self.version}",
            "metadata": {"resourceVersion": revision},
            "columnDefinitions": [_definition(header) for header in columns.headers],
            "rows": [{"cells": columns.cells(item), "object": self._row_object(item)} for item in items],
        }

    def _row_object(self, item: Object) -> Any:
        if self.include_object == "None":
            return None
        return item if self.include_object == "Object" else self._metadata_only(item)

    def _metadata_only(self, item: Object) -> Object:
        return {
            "kind": "PartialObjectMetadata",
            "apiVersion": f"meta.k8s.io/{self.version}",
            "metadata": item["metadata"],
        }


def _definition(header: str) -> Object:
    name = header.removeprefix("+")
    kind = "integer" if name in ("Up-to-date", "Available", "Desired", "Current") else "string"
    return {
        "name": name,
        "type": kind,
        "format": "name" if name == "Name" else "",
        "description": name,
        "priority": 1 if header.startswith("+") else 0,
    }


def read_form(accept: str, include_object: str) -> Form:
    """Choose the first form of an Accept header that is known."""
    for choice in accept.split(","):
        parameters = dict(part.strip().partition("=")[::2] for part in choice.split(";")[1:])
        version = parameters.get("v", "v1")
        shape = {"Table": "table", "PartialObjectMetadata": "metadata", "PartialObjectMetadataList": "metadata"}.get(
            parameters.get("as", ""), "object"
        )
        if "json" in choice or "*/*" in choice:
            return Form(shape=shape, version=version, include_object=include_object or "Metadata")
    return Form()
