"""The local Hub, asked by the real client and by plain HTTP."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamway.sandbox.hub_repository import (
    Promise,
    RepositorySettings,
    add_commit,
    find_repository,
    set_ref,
    set_repository,
)
from streamway.sandbox.seed import safetensors_bytes

MODEL = "org/model"
WEIGHTS = safetensors_bytes({"a": ("BF16", [4, 3], bytes(range(24))), "b": ("F32", [2], bytes(8))})
CARD = b"---\nlicense: apache-2.0\nlanguage:\n- en\ntags:\n- chat\n---\n# A model\n"
FILES: dict[str, Path | bytes | None] = {
    "README.md": CARD,
    "config.json": b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}',
    "model.safetensors": WEIGHTS,
    "original/params.json": b"{}",
}
DATE = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def api(hub: Any) -> HfApi:
    return HfApi(endpoint=hub.url, token=False)


@pytest.fixture
def commit(hub: Any) -> str:
    return add_commit(hub.repositories, MODEL, FILES, date=DATE)


def as_reader(hub: Any) -> HfApi:
    return HfApi(endpoint=hub.url, token="hf_reader")


def as_stranger(hub: Any) -> HfApi:
    return HfApi(endpoint=hub.url, token="hf_stranger")


def test_model_info_carries_what_a_pull_is_judged_by(api: HfApi, commit: str) -> None:
    info = api.model_info(MODEL, files_metadata=True, securityStatus=True)

    assert info.sha == commit
    assert info.card_data is not None
    assert info.card_data.license == "apache-2.0"
    assert info.tags is not None
    assert {"safetensors", "llama", "chat", "license:apache-2.0"} <= set(info.tags)
    assert info.gated is False
    assert info.private is False
    assert info.security_repo_status == {"scansDone": True, "filesWithIssues": []}
    assert info.safetensors is not None
    assert info.safetensors.parameters == {"BF16": 12, "F32": 2}
    weights = next(file for file in info.siblings or [] if file.rfilename == "model.safetensors")
    assert weights.size == len(WEIGHTS)
    assert weights.lfs is not None
    assert weights.lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()


def test_small_files_have_the_ids_that_git_gives_them(api: HfApi, commit: str, tmp_path: Path) -> None:
    info = api.model_info(MODEL, files_metadata=True)
    card = next(file for file in info.siblings or [] if file.rfilename == "README.md")
    (tmp_path / "card").write_bytes(CARD)

    by_git = subprocess.run(["git", "hash-object", tmp_path / "card"], capture_output=True, text=True, check=True)

    assert card.blob_id == by_git.stdout.strip()
    assert card.lfs is None


def test_remote_code_and_unsafe_files_are_told(hub: Any, api: HfApi) -> None:
    config = b'{"model_type": "x", "auto_map": {"AutoModel": "modeling.X"}}'
    set_repository(hub.repositories, MODEL, RepositorySettings(unsafe_files=("evil.bin",)))
    add_commit(hub.repositories, MODEL, {"config.json": config, "evil.bin": b"x"})

    info = api.model_info(MODEL, securityStatus=True)

    assert "custom_code" in (info.tags or [])
    assert (info.security_repo_status or {})["filesWithIssues"] == [{"path": "evil.bin", "level": "unsafe"}]


def test_snapshot_download_gives_the_same_bytes(hub: Any, commit: str, tmp_path: Path) -> None:
    folder = Path(snapshot_download(MODEL, endpoint=hub.url, local_dir=tmp_path / "got", token=False))

    for path, content in FILES.items():
        assert (folder / path).read_bytes() == content


def test_the_command_line_client_downloads(
    hub: Any, commit: str, tmp_path: Path, client_environment: dict[str, str]
) -> None:
    command = [str(Path(sys.executable).with_name("hf")), "download", MODEL, "--local-dir", str(tmp_path / "got")]

    subprocess.run(command, env={**client_environment, "HF_ENDPOINT": hub.url}, check=True, capture_output=True)

    assert (tmp_path / "got" / "model.safetensors").read_bytes() == WEIGHTS


def test_every_way_to_name_a_revision_means_the_same_commit(hub: Any, api: HfApi, commit: str) -> None:
    repository = find_repository(hub.repositories, MODEL)
    assert repository is not None
    set_ref(repository, "refs/tags/v1", commit)
    set_ref(repository, "refs/pr/1", commit)
    newer = add_commit(hub.repositories, MODEL, {"config.json": b"{}"})

    for revision in ("v1", commit, commit[:8], "refs/pr/1"):
        assert api.model_info(MODEL, revision=revision).sha == commit
    assert api.model_info(MODEL).sha == newer
    refs = api.list_repo_refs(MODEL, include_pull_requests=True)
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", commit)]
    assert [branch.name for branch in refs.branches] == ["main"]
    assert [commit.commit_id for commit in api.list_repo_commits(MODEL)] == [newer, commit]


def test_an_old_commit_keeps_its_files(hub: Any, api: HfApi, commit: str, tmp_path: Path) -> None:
    add_commit(hub.repositories, MODEL, {"model.safetensors": b"other", "original/params.json": None})

    old = api.hf_hub_download(MODEL, "model.safetensors", revision=commit, local_dir=tmp_path / "old")
    new = api.hf_hub_download(MODEL, "model.safetensors", local_dir=tmp_path / "new")

    assert Path(old).read_bytes() == WEIGHTS
    assert Path(new).read_bytes() == b"other"
    assert "original/params.json" not in api.list_repo_files(MODEL)


def test_the_same_content_at_the_same_date_has_the_same_commit(start_hub: Callable[..., Any], tmp_path: Path) -> None:
    first = add_commit(tmp_path / "a", MODEL, FILES, date=DATE)
    second = add_commit(tmp_path / "b", MODEL, dict(reversed(FILES.items())), date=DATE)
    other = add_commit(tmp_path / "c", MODEL, {**FILES, "config.json": b"{}"}, date=DATE)

    assert first == second
    assert first != other


def test_a_pushed_local_file_is_linked_not_copied(tmp_path: Path) -> None:
    source = tmp_path / "big.bin"
    source.write_bytes(os.urandom(1000))
    add_commit(tmp_path / "repos", MODEL, {"big.bin": source})

    assert source.stat().st_nlink == 2


def test_trees_of_many_files_come_in_pages(hub: Any, api: HfApi) -> None:
    add_commit(hub.repositories, MODEL, {f"part-{index:04}/x.json": b"{}" for index in range(1100)})

    files = [entry for entry in api.list_repo_tree(MODEL, recursive=True) if hasattr(entry, "size")]

    assert len(files) == 1100
    assert len(hub.get(f"/api/models/{MODEL}/tree/main?recursive=true").json()) == 1000


def test_a_folder_lists_only_what_is_in_it(api: HfApi, commit: str) -> None:
    assert {entry.path for entry in api.list_repo_tree(MODEL)} == {
        *("README.md", "config.json", "model.safetensors", "original")
    }
    assert [entry.path for entry in api.list_repo_tree(MODEL, "original")] == ["original/params.json"]
    assert [entry.path for entry in api.get_paths_info(MODEL, ["original", "missing"])] == ["original"]


def test_unknown_things_are_refused_as_the_hub_words_it(api: HfApi, hub: Any, commit: str) -> None:
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("org/missing")
    with pytest.raises(RepositoryNotFoundError):
        as_reader(hub).model_info("org/missing")
    with pytest.raises(RevisionNotFoundError, match="Invalid rev id: missing"):
        api.model_info(MODEL, revision="missing")
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download(MODEL, "missing.json")
    assert hub.get("/api/models/org/missing").status_code == 401
    assert hub.get("/api/models/..%2F..%2Fhub").status_code in (401, 404)


def test_a_gated_model_is_described_to_all_and_given_to_the_admitted(hub: Any, tmp_path: Path) -> None:
    set_repository(hub.repositories, MODEL, RepositorySettings(gated="manual"))
    add_commit(hub.repositories, MODEL, FILES)

    for refused, status in ((HfApi(endpoint=hub.url, token=False), 401), (as_stranger(hub), 403)):
        assert refused.model_info(MODEL).gated == "manual"
        with pytest.raises(GatedRepoError, match=f"Access to model {MODEL} is restricted") as caught:
            refused.hf_hub_download(MODEL, "config.json", local_dir=tmp_path / "no")
        assert caught.value.response.status_code == status
        refused.hf_hub_download(MODEL, "README.md", local_dir=tmp_path / str(status))
    assert as_reader(hub).hf_hub_download(MODEL, "config.json", local_dir=tmp_path / "yes")
    as_reader(hub).auth_check(MODEL)


def test_a_private_model_does_not_exist_for_others(hub: Any, api: HfApi) -> None:
    set_repository(hub.repositories, MODEL, RepositorySettings(private=True))
    add_commit(hub.repositories, MODEL, FILES)

    for refused in (api, as_stranger(hub)):
        with pytest.raises(RepositoryNotFoundError):
            refused.model_info(MODEL)
        assert [model.id for model in refused.list_models(search="model")] == []
    assert as_reader(hub).model_info(MODEL).private is True


def test_a_token_that_is_revoked_stops_working_at_once(hub: Any, commit: str) -> None:
    reader = as_reader(hub)
    assert reader.whoami()["name"] == "reader"

    (hub.state_path / "hub" / "tokens.json").write_text("{}")

    with pytest.raises(HfHubHTTPError, match="Invalid credentials in Authorization header"):
        reader.model_info(MODEL)


def test_a_renamed_model_is_found_under_its_old_name(hub: Any, api: HfApi, commit: str, tmp_path: Path) -> None:
    set_repository(hub.repositories, "org/old", RepositorySettings(moved_to=MODEL))

    assert api.model_info("org/old").id == MODEL
    path = api.hf_hub_download("org/old", "model.safetensors", local_dir=tmp_path)
    assert Path(path).read_bytes() == WEIGHTS


def test_a_disabled_model_says_so(hub: Any, api: HfApi) -> None:
    set_repository(hub.repositories, MODEL, RepositorySettings(disabled=True))

    with pytest.raises(DisabledRepoError):
        api.model_info(MODEL)


def test_large_files_are_signed_addresses_of_another_origin(hub: Any, commit: str) -> None:
    url = hf_hub_url(MODEL, "model.safetensors", endpoint=hub.url)

    metadata = get_hf_file_metadata(url)

    assert metadata.etag == hashlib.sha256(WEIGHTS).hexdigest()
    assert metadata.size == len(WEIGHTS)
    assert metadata.commit_hash == commit
    assert not metadata.location.startswith(hub.url)
    assert requests.get(metadata.location, timeout=20).content == WEIGHTS
    tampered = metadata.location.replace("Signature=", "Signature=0")
    assert requests.get(tampered, timeout=20).status_code == 403


def test_signed_addresses_expire(hub: Any, commit: str, start_hub: Callable[..., Any]) -> None:
    url = f"{hub.url}/{MODEL}/resolve/main/model.safetensors"
    location = requests.head(url, timeout=20).headers["Location"]
    hub.post("/sandbox/links/expire", {})
    assert requests.get(location, timeout=20).status_code == 403
    assert requests.get(url, timeout=20).content == WEIGHTS

    brief = start_hub("--link-seconds", "0", name="brief")
    add_commit(brief.repositories, MODEL, FILES)
    assert brief.get(f"/{MODEL}/resolve/main/model.safetensors").status_code == 403


def test_small_files_are_redirected_on_the_same_origin(hub: Any, commit: str) -> None:
    answer = hub.get(f"/{MODEL}/resolve/main/config.json", allow_redirects=False)

    assert answer.status_code == 307
    assert answer.headers["Location"].startswith("/api/resolve-cache/")
    assert answer.headers["X-Repo-Commit"] == commit
    assert hub.get(f"/{MODEL}/resolve/main/config.json").content == FILES["config.json"]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    first=st.one_of(st.none(), st.integers(0, 200)),
    last=st.one_of(st.none(), st.integers(0, 200)),
    path=st.sampled_from(["model.safetensors", "config.json"]),
)
def test_a_range_gives_the_bytes_of_that_range(
    hub: Any, commit: str, first: int | None, last: int | None, path: str
) -> None:
    content = FILES[path]
    assert isinstance(content, bytes)
    header = f"bytes={'' if first is None else first}-{'' if last is None else last}"

    answer = hub.get(f"/{MODEL}/resolve/main/{path}", headers={"Range": header})

    expected = slice_of(content, first, last)
    assert answer.status_code == {None: 200, b"": 416}.get(expected, 206)
    if expected:
        start = len(content) - len(expected) if first is None else first
        total = len(content)
        assert answer.headers["Content-Range"] == f"bytes {start}-{start + len(expected) - 1}/{total}"
        assert answer.content == expected
    elif expected is None:
        assert answer.content == content


def slice_of(content: bytes, first: int | None, last: int | None) -> bytes | None:
    """RFC 9110, section 14.1.2: None where the header is to be ignored, empty where nothing is there."""
    if first is None:
        return None if last is None else content[max(0, len(content) - last) :] if last else b""
    if last is not None and last < first:
        return None
    return content[first:] if last is None else content[first : last + 1]


def test_conditions_are_kept(hub: Any, commit: str) -> None:
    path = f"/{MODEL}/resolve/main/model.safetensors"
    etag = f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
    part = {"Range": "bytes=0-3"}

    assert hub.get(path, headers={**part, "If-Range": etag}).content == WEIGHTS[:4]
    assert hub.get(path, headers={**part, "If-Range": '"other"'}).content == WEIGHTS
    assert hub.get(path, headers={"If-Match": '"other"'}).status_code == 412
    assert hub.get(path, headers={"If-None-Match": etag}).status_code == 304


def test_head_tells_the_length_and_sends_nothing(hub: Any, commit: str) -> None:
    answer = requests.head(f"{hub.url}/{MODEL}/resolve/main/model.safetensors", allow_redirects=True, timeout=20)

    assert answer.headers["Content-Length"] == str(len(WEIGHTS))
    assert hub.bytes_of(f"{MODEL}/model.safetensors") == 0


def test_counters_say_how_many_bytes_of_a_file_have_left(hub: Any, commit: str) -> None:
    location = requests.head(f"{hub.url}/{MODEL}/resolve/main/model.safetensors", timeout=20).headers["Location"]
    requests.get(location, headers={"Range": "bytes=0-9"}, timeout=20)
    requests.get(location, timeout=20)

    assert hub.bytes_of(f"{MODEL}/model.safetensors") == 10 + len(WEIGHTS)


def test_a_rate_limit_reaches_the_client_as_one(hub: Any, api: HfApi, commit: str) -> None:
    headers = {"RateLimit": '"api";r=0;t=7', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}
    hub.arm(kind="status", status=429, headers=headers, path="/api/models/*")

    with pytest.raises(HfHubHTTPError, match="Retry after 7 seconds"):
        api.model_info(MODEL)
    assert api.model_info(MODEL).sha == commit


def test_a_cut_download_is_taken_up_again_by_the_client(hub: Any, api: HfApi, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    add_commit(hub.repositories, MODEL, {"big.bin": content})
    hub.arm(kind="truncate", path="/cdn/*", after_bytes=1_000_000)

    path = api.hf_hub_download(MODEL, "big.bin", local_dir=tmp_path)

    assert Path(path).read_bytes() == content
    assert hub.get("/sandbox/faults").json() == {"armed": []}


def test_ranges_can_be_ignored_on_demand(hub: Any, commit: str) -> None:
    path = f"/{MODEL}/resolve/main/model.safetensors"
    hub.post("/sandbox/ranges/ignore", {"times": 1})

    whole = hub.get(path, headers={"Range": "bytes=4-7"})
    part = hub.get(path, headers={"Range": "bytes=4-7"})

    assert (whole.status_code, whole.content) == (200, WEIGHTS)
    assert (part.status_code, part.content) == (206, WEIGHTS[4:8])


def test_bytes_can_be_promised_that_are_not_there(hub: Any, api: HfApi) -> None:
    promise = Promise(sha256="f" * 64, size_bytes=99)
    add_commit(hub.repositories, MODEL, {"model.safetensors": WEIGHTS}, promises={"model.safetensors": promise})

    info = api.get_paths_info(MODEL, "model.safetensors")[0]

    assert (info.lfs.sha256, info.size) == ("f" * 64, 99)
    assert hub.get(f"/{MODEL}/resolve/main/model.safetensors").content == WEIGHTS


def test_raw_shows_the_pointer_of_a_large_file(hub: Any, commit: str) -> None:
    text = hub.get(f"/{MODEL}/raw/main/model.safetensors").text

    assert text.splitlines()[1] == f"oid sha256:{hashlib.sha256(WEIGHTS).hexdigest()}"
    assert hub.get(f"/{MODEL}/raw/main/README.md").content == CARD
