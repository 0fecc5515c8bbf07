"""What Cloud Storage's two APIs say about objects: JSON resources, XML headers, refusals, and conditions in both."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape

from aiohttp import web
from multidict import CIMultiDict

from streamway.sandbox.bucket_checksums import decode_crc32c, encode_crc32c
from streamway.sandbox.bucket_store import Conditions, Content, Description, StoredObject, StoreError

XML_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
# The XML API's codes and the JSON API's reasons for the same refusals.
_REASONS = {
    "NoSuchBucket": "notFound",
    "NoSuchKey": "notFound",
    "NoSuchUpload": "notFound",
    "BadDigest": "invalid",
    "CrcMismatch": "invalid",
    "InvalidDigest": "invalid",
}
_XML_CODES = {"conditionNotMet": "PreconditionFailed"}
_META = "x-goog-meta-"


def resource(stored: StoredObject, base_url: str) -> dict[str, Any]:
    """Return an object as the JSON API describes it.

    Source: https://cloud.google.com/storage/docs/json_api/v1/objects#resource
    """
    attributes = stored.attributes
    path = f"b/{stored.bucket}/o/{quote(stored.name, safe='')}"
    value = {
        "kind": "storage#object",
        "id": f"{stored.bucket}/{stored.name}/{stored.generation}",
        "selfLink": f"{base_url}/storage/v1/{path}",
        "mediaLink": f"{base_url}/download/storage/v1/{path}?generation={stored.generation}&alt=media",
        "name": stored.name,
        "bucket": stored.bucket,
        "generation": str(stored.generation),
        "metageneration": str(stored.metageneration),
        "contentType": attributes["ContentType"],
        "storageClass": attributes["StorageClass"],
        "size": str(stored.size_bytes),
        "crc32c": stored.crc32c,
        "etag": stored.etag,
        "timeCreated": attributes["Created"],
        "updated": attributes["Updated"],
        "timeStorageClassUpdated": attributes["Created"],
    }
    optional = {
        "md5Hash": attributes["Md5Hash"],
        "cacheControl": attributes["CacheControl"],
        "contentEncoding": attributes["ContentEncoding"],
        "contentDisposition": attributes["ContentDisposition"],
        "contentLanguage": attributes["ContentLanguage"],
        "metadata": attributes["Metadata"],
        "componentCount": attributes.get("ComponentCount"),
    }
    return value | {name: given for name, given in optional.items() if given}


def object_headers(stored: StoredObject) -> CIMultiDict[str]:
    """Return the headers that go with an object's bytes.

    Source: https://cloud.google.com/storage/docs/xml-api/reference-headers
    """
    attributes = stored.attributes
    headers: CIMultiDict[str] = CIMultiDict()
    headers["Content-Type"] = attributes["ContentType"]
    headers["Accept-Ranges"] = "bytes"
    headers["ETag"] = f'"{stored.etag}"'
    headers["x-goog-generation"] = str(stored.generation)
    headers["x-goog-metageneration"] = str(stored.metageneration)
    headers["x-goog-storage-class"] = attributes["StorageClass"]
    headers["x-goog-stored-content-encoding"] = attributes["ContentEncoding"] or "identity"
    headers["x-goog-stored-content-length"] = str(stored.size_bytes)
    headers["x-goog-hash"] = hash_header(stored.crc32c, attributes["Md5Hash"])
    headers["Last-Modified"] = _http_date(attributes["Updated"])
    for name, key in (
        ("Content-Encoding", "ContentEncoding"),
        ("Content-Disposition", "ContentDisposition"),
        ("Content-Language", "ContentLanguage"),
        ("Cache-Control", "CacheControl"),
    ):
        if attributes[key]:
            headers[name] = attributes[key]
    for name, given in (attributes["Metadata"] or {}).items():
        headers[f"{_META}{name}"] = given
    return headers


def hash_header(crc32c: str, md5: str) -> str:
    """Return the value of x-goog-hash."""
    return f"crc32c={crc32c},md5={md5}" if md5 else f"crc32c={crc32c}"


def json_error(error: StoreError) -> web.Response:
    """Word a refusal as the JSON API does."""
    reason = _REASONS.get(error.code, error.code)
    detail = {"domain": "global", "reason": reason, "message": str(error)}
    body = {"error": {"code": error.status, "message": str(error), "errors": [detail]}}
    return web.json_response(None if error.status == 304 else body, status=error.status)


def xml_error(error: StoreError) -> web.Response:
    """Word a refusal as the XML API does."""
    code = _XML_CODES.get(error.code, error.code)
    body = (
        f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{escape(code)}</Code>"
        f"<Message>{escape(str(error))}</Message><Details>{escape(str(error))}</Details></Error>"
    )
    return web.Response(
        status=error.status, body=b"" if error.status == 304 else body.encode(), content_type="application/xml"
    )


def xml_document(root: str, fields: Iterable[tuple[str, str]], inner: str = "") -> web.Response:
    """Answer with a document of the XML API: simple fields, then prepared text."""
    simple = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in fields)
    body = f"<?xml version='1.0' encoding='UTF-8'?><{root} xmlns='{XML_NAMESPACE}'>{simple}{inner}</{root}>"
    return web.Response(body=body.encode(), content_type="application/xml")


def query_conditions(query: Mapping[str, str], prefix: str = "") -> Conditions:
    """Read conditions of the JSON API; `prefix` is `Source` for those on the source of a copy."""
    generation = "sourceGeneration" if prefix else "generation"
    return Conditions(
        generation=_number(query, generation),
        if_generation_match=_number(query, f"if{prefix}GenerationMatch"),
        if_generation_not_match=_number(query, f"if{prefix}GenerationNotMatch"),
        if_metageneration_match=_number(query, f"if{prefix}MetagenerationMatch"),
        if_metageneration_not_match=_number(query, f"if{prefix}MetagenerationNotMatch"),
    )


def header_conditions(request: web.Request, prefix: str = "x-goog-if-") -> Conditions:
    """Read conditions of the XML API; `prefix` differs for those on the source of a copy."""
    headers = request.headers
    source = prefix != "x-goog-if-"
    return Conditions(
        generation=_number(headers, "x-goog-copy-source-generation")
        if source
        else _number(request.query, "generation"),
        if_generation_match=_number(headers, f"{prefix}generation-match"),
        if_generation_not_match=_number(headers, f"{prefix}generation-not-match"),
        if_metageneration_match=_number(headers, f"{prefix}metageneration-match"),
        if_metageneration_not_match=_number(headers, f"{prefix}metageneration-not-match"),
    )


def check_etags(request: web.Request, stored: StoredObject) -> None:
    """Honour If-Match and If-None-Match of a read."""
    wanted, unwanted = request.headers.get("If-Match"), request.headers.get("If-None-Match")
    if wanted and not _names_etag(wanted, stored.etag):
        raise StoreError(412, "conditionNotMet", "If-Match does not hold.")
    if unwanted and _names_etag(unwanted, stored.etag):
        raise StoreError(304, "notModified", "Not Modified")


def json_description(value: Mapping[str, Any]) -> Description:
    """Read what a writer says about an object in a JSON resource."""
    metadata = value.get("metadata") or {}
    return Description(
        content_type=str(value.get("contentType") or ""),
        content_encoding=str(value.get("contentEncoding") or ""),
        content_disposition=str(value.get("contentDisposition") or ""),
        content_language=str(value.get("contentLanguage") or ""),
        cache_control=str(value.get("cacheControl") or ""),
        storage_class=str(value.get("storageClass") or ""),
        metadata={str(name): str(given) for name, given in metadata.items() if given is not None},
    )


def header_description(headers: Mapping[str, str]) -> Description:
    """Read what a writer says about an object in headers of the XML API."""
    return Description(
        content_type=headers.get("Content-Type", ""),
        content_encoding=headers.get("Content-Encoding", ""),
        content_disposition=headers.get("Content-Disposition", ""),
        content_language=headers.get("Content-Language", ""),
        cache_control=headers.get("Cache-Control", ""),
        storage_class=headers.get("x-goog-storage-class", ""),
        metadata={
            name[len(_META) :].lower(): value for name, value in headers.items() if name.lower().startswith(_META)
        },
    )


def promised_hashes(request: web.Request) -> dict[str, str]:
    """Return the hashes that an upload's headers promise, as {"crc32c": ..., "md5": ...}."""
    promised: dict[str, str] = {}
    for header in request.headers.getall("x-goog-hash", []):
        for entry in header.split(","):
            name, _, value = entry.strip().partition("=")
            promised[name.lower()] = value
    if "Content-MD5" in request.headers:
        promised["md5"] = request.headers["Content-MD5"]
    return {name: value for name, value in promised.items() if name in ("crc32c", "md5")}


def check_hashes(promised: Mapping[str, str], content: Content) -> None:
    """Refuse bytes that are not the ones promised."""
    if "crc32c" in promised:
        try:
            wanted = decode_crc32c(promised["crc32c"])
        except ValueError as error:
            raise StoreError(400, "InvalidDigest", f"The CRC32C you specified is invalid: {error}") from error
        if wanted != content.crc32c:
            found = encode_crc32c(content.crc32c)
            raise StoreError(
                400,
                "CrcMismatch",
                f'Provided CRC32C "{promised["crc32c"]}" doesn\'t match calculated CRC32C "{found}".',
            )
    if promised.get("md5") and promised["md5"] != content.md5:
        raise StoreError(
            400,
            "BadDigest",
            f'Provided MD5 hash "{promised["md5"]}" doesn\'t match calculated MD5 hash "{content.md5}".',
        )


def project(value: Any, fields: str | None) -> Any:
    """Keep only what the `fields` parameter names, such as `items(name,size),nextPageToken`.

    Source: https://cloud.google.com/storage/docs/json_api#partial-response
    """
    return _keep(value, _parse_fields(fields)) if fields else value


def _parse_fields(text: str) -> dict[str, Any]:
    """Return nested names; an empty dictionary keeps everything below it."""
    return _parse_group(iter(re.findall(r"[^,()/]+|[,()/]", text)))


def _parse_group(tokens: Iterator[str]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    here = names
    for token in tokens:
        if token == ")":
            break
        if token == ",":
            here = names
        elif token == "(":
            here.update(_parse_group(tokens))
        elif token != "/":
            here = here.setdefault(token.strip(), {})
    return names


def _keep(value: Any, names: Mapping[str, Any]) -> Any:
    if not names or "*" in names:
        return value
    if isinstance(value, list):
        return [_keep(entry, names) for entry in value]
    if isinstance(value, dict):
        return {name: _keep(value[name], inner) for name, inner in names.items() if name in value}
    return value


def _number(values: Mapping[str, str], name: str) -> int | None:
    given = values.get(name)
    if given is None or given == "":
        return None
    try:
        return int(given)
    except ValueError as error:
        raise StoreError(400, "invalid", f"{name} is {given!r}, which is not a number") from error


def _names_etag(header: str, etag: str) -> bool:
    named = [entry.strip().removeprefix("W/").strip('"') for entry in header.split(",")]
    return header.strip() == "*" or etag in named


def _http_date(timestamp: str) -> str:
    return format_datetime(datetime.fromisoformat(timestamp).astimezone(UTC), usegmt=True)


def json_body(raw: bytes) -> dict[str, Any]:
    """Read a JSON request body; an empty one is an empty object."""
    try:
        value = json.loads(raw or b"{}")
    except ValueError as error:
        raise StoreError(400, "parseError", "Parse Error") from error
    if not isinstance(value, dict):
        raise StoreError(400, "parseError", "Parse Error")
    return value
