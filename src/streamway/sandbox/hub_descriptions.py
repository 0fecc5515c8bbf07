"""What the Hub's API says about a repository, derived from its files as the Hub derives it.

Shapes as `huggingface_hub` 2.4.0 reads them (ModelInfo, RepoFile, RepoFolder, GitCommitInfo) and as the Hub
documents them in its OpenAPI description (huggingface.co/.well-known/openapi.json).
"""

import json
import struct
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from streamway.sandbox.hub_repository import Commit, HubFile, Repository, RepositorySettings, pointer_text

# A safetensors header is at most 100 MB (safetensors README, "Format"); the Hub gives up long before.
_MAX_HEADER_BYTES = 25_000_000
_LIBRARY_TAGS = {".safetensors": "safetensors", ".bin": "pytorch", ".gguf": "gguf", ".onnx": "onnx"}


def describe_model(repository: Repository, commit: Commit, *, blobs: bool, security: bool) -> dict[str, Any]:
    """Return what `/api/models/<id>` answers.

    Args:
        repository: Which one.
        commit: At which commit.
        blobs: Whether siblings carry size, blob id and LFS hash.
        security: Whether to add the state of the scanners.
    """
    settings = repository.settings
    card = read_card(repository.read_text(commit, "README.md"))
    config = _read_config(repository, commit)
    history = list(repository.history(commit))
    namespace, _, _ = repository.model_id.rpartition("/")
    described: dict[str, Any] = {
        "_id": history[-1].sha[:24],
        "id": repository.model_id,
        "modelId": repository.model_id,
        "author": namespace or None,
        "sha": commit.sha,
        "lastModified": commit.date,
        "createdAt": history[-1].date,
        "private": settings.private,
        "gated": settings.gated,
        "disabled": settings.disabled,
        "downloads": 0,
        "likes": 0,
        "tags": _tags(commit, card, config),
        "pipeline_tag": card.get("pipeline_tag", "text-generation" if config else None),
        "library_name": card.get("library_name", "transformers" if config else None),
        "cardData": card,
        "config": config,
        "siblings": [_sibling(file, blobs=blobs) for file in commit.files.values()],
        "spaces": [],
        "usedStorage": sum(file.size_bytes for file in commit.files.values() if file.lfs),
    }
    parameters = _count_parameters(repository, commit)
    if parameters:
        described["safetensors"] = {"parameters": parameters, "total": sum(parameters.values())}
    if security:
        described["securityRepoStatus"] = _security(settings, commit)
    return described


def read_card(readme: str) -> dict[str, Any]:
    """Return the metadata at the top of a model card; empty where there is none or it is no YAML mapping."""
    if not readme.startswith("---"):
        return {}
    try:
        found = yaml.safe_load(readme.split("---", 2)[1])
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def describe_tree(
    repository: Repository, commit: Commit, folder: str, *, recursive: bool, expand: bool
) -> list[dict[str, Any]] | None:
    """Return the entries of a folder, or None where there is no such folder."""
    prefix = f"{folder}/" if folder else ""
    inside = [file for path, file in commit.files.items() if path.startswith(prefix)]
    if folder and not inside:
        return None
    entries: dict[str, dict[str, Any]] = {}
    for file in inside:
        parts = PurePosixPath(file.path[len(prefix) :]).parts
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            path = prefix + "/".join(parts[:depth])
            entries.setdefault(path, _folder(commit, path, expand=expand))
        if recursive or len(parts) == 1:
            entries[file.path] = describe_file(repository, commit, file, expand=expand)
    return list(entries.values())


def describe_paths(repository: Repository, commit: Commit, paths: list[str], *, expand: bool) -> list[dict[str, Any]]:
    """Return the entries of some paths; paths that do not exist are left out, as the Hub does."""
    entries = []
    for path in paths:
        if path in commit.files:
            entries.append(describe_file(repository, commit, commit.files[path], expand=expand))
        elif any(name.startswith(f"{path}/") for name in commit.files):
            entries.append(_folder(commit, path, expand=expand))
    return entries


def describe_file(repository: Repository, commit: Commit, file: HubFile, *, expand: bool) -> dict[str, Any]:
    """Return a file as the tree has it."""
    entry: dict[str, Any] = {"type": "file", "oid": file.oid, "size": file.size_bytes, "path": file.path}
    if file.lfs:
        entry["lfs"] = {"oid": file.sha256, "size": file.size_bytes, "pointerSize": len(pointer_text(file))}
    if expand:
        status = "unsafe" if file.path in repository.settings.unsafe_files else "safe"
        entry["lastCommit"] = _last_commit(commit)
        entry["securityFileStatus"] = {
            "status": status,
            "avScan": {"status": "safe"},
            "pickleImportScan": {"status": status, "pickleImports": []},
        }
    return entry


def describe_commit(commit: Commit, *, formatted: bool) -> dict[str, Any]:
    """Return a commit as the list of commits has it."""
    entry: dict[str, Any] = {
        "id": commit.sha,
        "title": commit.title,
        "message": "",
        "authors": [{"user": commit.author}],
        "date": commit.date,
    }
    if formatted:
        entry["formatted"] = {"title": commit.title, "message": ""}
    return entry


def describe_refs(refs: Mapping[str, str]) -> dict[str, list[dict[str, str]]]:
    """Return branches, tags, converted branches and pull requests."""
    kinds = {"refs/heads/": "branches", "refs/tags/": "tags", "refs/convert/": "converts"}
    described: dict[str, list[dict[str, str]]] = {kind: [] for kind in ("branches", "converts", "tags", "pullRequests")}
    for ref, sha in refs.items():
        prefix = next((one for one in kinds if ref.startswith(one)), "refs/")
        kind = kinds.get(prefix, "pullRequests")
        described[kind].append({"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": sha})
    return described


def _folder(commit: Commit, path: str, *, expand: bool) -> dict[str, Any]:
    # The Hub gives git's id of the tree; clients only need one that is stable.
    entry: dict[str, Any] = {"type": "directory", "oid": commit.sha, "size": 0, "path": path}
    if expand:
        entry["lastCommit"] = _last_commit(commit)
    return entry


def _last_commit(commit: Commit) -> dict[str, str]:
    return {"id": commit.sha, "title": commit.title, "date": commit.date}


def _sibling(file: HubFile, *, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": file.path}
    sibling: dict[str, Any] = {"rfilename": file.path, "blobId": file.oid, "size": file.size_bytes}
    if file.lfs:
        sibling["lfs"] = {"sha256": file.sha256, "size": file.size_bytes, "pointerSize": len(pointer_text(file))}
    return sibling


def _read_config(repository: Repository, commit: Commit) -> dict[str, Any] | None:
    """Return the excerpt of config.json that the Hub shows."""
    try:
        config = json.loads(repository.read_text(commit, "config.json"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(config, dict):
        return None
    shown = ("architectures", "model_type", "auto_map", "quantization_config")
    return {key: config[key] for key in shown if key in config}


def _tags(commit: Commit, card: Mapping[str, Any], config: Mapping[str, Any] | None) -> list[str]:
    tags = ["transformers"] if config else []
    suffixes = {PurePosixPath(path).suffix for path in commit.files if "/" not in path}
    tags += [tag for suffix, tag in _LIBRARY_TAGS.items() if suffix in suffixes]
    if config and config.get("model_type"):
        tags.append(str(config["model_type"]))
    tags += _as_list(card.get("tags"))
    if config and "auto_map" in config:
        tags.append("custom_code")
    tags += _as_list(card.get("language"))
    tags += [f"license:{licence}" for licence in _as_list(card.get("license"))]
    return list(dict.fromkeys([*tags, "region:us"]))


def _as_list(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else [str(value)] if value else []


def _security(settings: RepositorySettings, commit: Commit) -> dict[str, Any]:
    issues = [{"path": path, "level": "unsafe"} for path in settings.unsafe_files if path in commit.files]
    return {"scansDone": settings.scanned, "filesWithIssues": issues}


def _count_parameters(repository: Repository, commit: Commit) -> dict[str, int]:
    """Count parameters by dtype in the safetensors files at the root."""
    total: Counter[str] = Counter()
    for file in commit.files.values():
        if file.path.endswith(".safetensors") and "/" not in file.path:
            total.update(_parameters_of(repository.blob_path(file)))
    return dict(total)


@lru_cache(maxsize=256)
def _parameters_of(blob: Path) -> Mapping[str, int]:
    """Read a header; a file that is no safetensors counts nothing, for its reader to find out."""
    try:
        with blob.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length <= _MAX_HEADER_BYTES else {}
        counts: Counter[str] = Counter()
        for name, tensor in header.items():
            if name != "__metadata__":
                counts[tensor["dtype"]] += _product(tensor["shape"])
        return counts
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error):
        return {}


def _product(shape: list[int]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count
