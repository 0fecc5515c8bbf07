"""Which stages a release has passed, written beside its manifest, and the copy that only such a release may take.

    ROOT/<org>/<name>/<sha>.passed.<stage>.json

A record names the manifest by its digest, so that it speaks of exactly these bytes: a release that was retired and
published anew has passed nothing.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from streamway.errors import GateError
from streamway.storage.addresses import is_gs, join
from streamway.storage.files import exists, read_file, write_file
from streamway.storage.layout import ModelLayout
from streamway.storage.manifest import MAX_BYTES, now
from streamway.storage.records import WEIGHTS_RECORD, PreparedWeights
from streamway.storage.release import Release, find_release, upload_model, verify_release
from streamway.storage.segments import Progress
from streamway.storage.transfer import MEMORY_BYTES

log = logging.getLogger("streamway.storage")

FORMAT_VERSION = 1
_STAGE = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
_MAX_RECORD_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class Passage:
    """One stage that a release has passed.

    Args:
        stage: Such as `staging`.
        model_id: Hugging Face model id.
        commit_sha: The commit.
        release_uri: The release that passed.
        manifest_sha256: Digest of its manifest, as lower-case hex.
        passed: When, RFC 3339 in UTC.
        run_uri: Journal of the run that proved it.
        evidence: What the smoke test said, as plain JSON.
        format_version: Of this record.
    """

    stage: str
    model_id: str
    commit_sha: str
    release_uri: str
    manifest_sha256: str
    passed: str
    run_uri: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


def passage_uri(layout: ModelLayout, stage: str) -> str:
    """Return where a stage's record is.

    Raises:
        GateError: that is no name of a stage.
    """
    if not _STAGE.fullmatch(stage):
        raise GateError(
            f"{stage!r} is not a name of a stage; expected small letters, digits and dashes, at most 40.",
            next_step="Name it like `staging` or `production`.",
        )
    return f"{layout.release_uri.rstrip('/')}.passed.{stage}.json"


def record_passage(
    *, model_id: str, commit_sha: str, release_root: str, stage: str, run_uri: str, evidence: Mapping[str, Any]
) -> Passage:
    """Write down that a release has passed a stage.

    Args:
        model_id: Hugging Face model id.
        commit_sha: The commit.
        release_root: Where the release is.
        stage: What it has passed.
        run_uri: Journal of the run that proved it.
        evidence: What the smoke test said; it must have passed.

    Raises:
        GateError: the evidence is missing or says that it failed, or there is no release.
    """
    layout = ModelLayout(release_root, model_id, commit_sha)
    uri = passage_uri(layout, stage)
    if evidence.get("passed") is not True or evidence.get("commit_sha", commit_sha) != commit_sha:
        raise GateError(
            f"{layout.release_uri} has not passed {stage}: no smoke test of this commit that passed is in {run_uri}.",
            next_step="Run the whole pipeline; the smoke test is its last step.",
        )
    passage = Passage(
        stage=stage,
        model_id=model_id,
        commit_sha=commit_sha,
        release_uri=layout.release_uri,
        manifest_sha256=_manifest_digest(layout),
        passed=now(),
        run_uri=run_uri,
        evidence=dict(evidence),
    )
    write_file(uri, json.dumps(asdict(passage), indent=1, sort_keys=True).encode())
    log.info("%s has passed %s", layout.release_uri, stage)
    return passage


def check_passages(
    *, model_id: str, commit_sha: str, release_root: str, requires: Sequence[str]
) -> tuple[Passage, ...]:
    """Return the records of every stage that a release must have passed.

    Raises:
        GateError: some are missing or speak of another release; all of them are named.
    """
    layout = ModelLayout(release_root, model_id, commit_sha)
    digest = _manifest_digest(layout)
    passages, missing = [], []
    for stage in dict.fromkeys(requires):
        passage = _read(passage_uri(layout, stage))
        wrong = _find_fault(passage, layout, stage, digest)
        if passage is None or wrong:
            missing.append(f"{stage}: {wrong}")
        else:
            passages.append(passage)
    if missing:
        raise GateError(
            f"{layout.release_uri} may not be promoted. {'; '.join(missing)}.",
            next_step=f"Run it where it is missing, with promotion.stage set to {missing[0].partition(':')[0]}.",
        )
    return tuple(passages)


def promote_release(
    *,
    model_id: str,
    commit_sha: str,
    source_root: str,
    release_root: str,
    requires: Sequence[str],
    memory_bytes: int = MEMORY_BYTES,
    on_progress: Progress | None = None,
) -> Release:
    """Publish a release under another root, if it has passed what it must.

    Between buckets, Cloud Storage copies the objects by itself. The Hub is never asked.

    Args:
        model_id: Hugging Face model id.
        commit_sha: The commit.
        source_root: Where the release is.
        release_root: Where it shall be; may be the same, which only checks the gates.
        requires: Stages that it must have passed at its source.
        memory_bytes: Most memory for bytes in flight, where bytes must move at all.
        on_progress: Called with (bytes done, bytes in all).

    Raises:
        GateError: it has not passed them; what is missing is named.
        ReleaseError: the release is not what its manifest says, or another one is at the target.
    """
    target = ModelLayout(release_root, model_id, commit_sha)
    check_passages(model_id=model_id, commit_sha=commit_sha, release_root=source_root, requires=requires)
    source = verify_release(ModelLayout(source_root, model_id, commit_sha).release_uri)
    if source.uri == target.release_uri:
        log.info("%s is where it shall be", source.uri)
        return source
    write_file(join(target.weights_uri, WEIGHTS_RECORD), _as_prepared(source).to_json().encode())
    return upload_model(
        weights_uri=target.weights_uri, release_root=release_root, memory_bytes=memory_bytes, on_progress=on_progress
    )


def _as_prepared(source: Release) -> PreparedWeights:
    manifest = source.manifest
    return PreparedWeights(
        model_id=manifest.model_id,
        revision=manifest.revision,
        commit_sha=manifest.commit_sha,
        licence=manifest.licence,
        source=manifest.source,
        files=source.recorded_files,
        report=dict(manifest.conversion),
    )


def _manifest_digest(layout: ModelLayout) -> str:
    if find_release(layout.release_uri) is None:
        kind = "bucket" if is_gs(layout.release_root) else "folder"
        raise GateError(
            f"There is no release {layout.release_uri}: the {kind} has no {layout.manifest_uri}.",
            next_step="Check the root, the model id and the commit; `streamway status` names what is served.",
        )
    return hashlib.sha256(read_file(layout.manifest_uri, max_bytes=MAX_BYTES)).hexdigest()


def _read(uri: str) -> Passage | None:
    if not exists(uri):
        return None
    try:
        return Passage(**json.loads(read_file(uri, max_bytes=_MAX_RECORD_BYTES)))
    except (ValueError, TypeError) as error:
        raise GateError(
            f"{uri} is not a record that this version can read: {error}.", next_step="Run that stage again."
        ) from error


def _find_fault(passage: Passage | None, layout: ModelLayout, stage: str, digest: str) -> str:
    if passage is None:
        return f"it has not passed (there is no {passage_uri(layout, stage)})"
    if (passage.model_id, passage.commit_sha, passage.stage) != (layout.model_id, layout.commit_sha, stage):
        return f"the record speaks of {passage.stage} for {passage.model_id} at {passage.commit_sha}"
    if passage.manifest_sha256 != digest:
        return (
            f"what passed at {passage.passed} was another release under this commit (manifest "
            f"{passage.manifest_sha256[:12]}, expected {digest[:12]})"
        )
    if passage.evidence.get("passed") is not True:
        return "the record holds no smoke test that passed"
    return ""
