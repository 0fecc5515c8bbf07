"""Objects are described, copied, composed, deleted and listed as Cloud Storage does it."""

import os

import obstore
import pytest
import requests
from bucket_part import BUCKET, BYTES, MIB, Part, crc32c
from google.api_core import exceptions as refusals
from obstore.store import GCSStore


def test_copy_keeps_checksum_and_description_and_survives_its_source(part: Part) -> None:
    source = part.bucket.blob("copies/source")
    source.metadata = {"k": "v"}
    source.upload_from_string(BYTES, content_type="a/b")
    target = part.bucket.blob("copies/target")
    assert target.rewrite(source, if_generation_match=0) == (None, len(BYTES), len(BYTES))
    source.delete()
    assert (target.crc32c, target.content_type, target.metadata) == (crc32c(BYTES), "a/b", {"k": "v"})
    assert target.download_as_bytes(checksum="crc32c") == BYTES


def test_copy_describes_itself_where_it_says_so(part: Part) -> None:
    source = part.bucket.blob("copies/plain")
    source.metadata = {"k": "v"}
    source.upload_from_string(b"x", content_type="a/b")
    target = part.client.bucket("europe").blob("copies/other")
    target.metadata = {"own": "1"}
    target.rewrite(source)
    target.reload()
    assert (target.metadata, target.content_type) == ({"own": "1"}, "a/b")


def test_copy_honours_conditions_of_both_sides(part: Part) -> None:
    source, target = part.bucket.blob("copies/one"), part.bucket.blob("copies/two")
    source.upload_from_string(b"one")
    target.upload_from_string(b"two")
    for conditions in (
        {"if_generation_match": 0},
        {"if_source_generation_match": source.generation + 1},
        {"if_generation_match": target.generation + 1},
    ):
        with pytest.raises(refusals.PreconditionFailed):
            part.bucket.blob("copies/two").rewrite(part.bucket.blob("copies/one"), **conditions)
    with pytest.raises(refusals.NotFound):
        target.rewrite(part.bucket.blob("copies/absent"))
    with pytest.raises(refusals.NotFound):
        part.client.bucket("no-such-bucket").blob("x").rewrite(source)
    assert target.download_as_bytes() == b"two"


def test_patch_changes_the_metageneration_only(part: Part) -> None:
    blob = part.bucket.blob("patched")
    blob.metadata = {"a": "1", "b": "2"}
    blob.upload_from_string(BYTES)
    generation = blob.generation
    blob.metadata = {"a": None, "c": "3"}
    blob.patch(if_metageneration_match=1)
    found = part.bucket.get_blob("patched")
    assert (found.metadata, found.generation, found.metageneration) == (
        {"b": "2", "c": "3"},
        generation,
        2,
    )
    with pytest.raises(refusals.PreconditionFailed):
        found.patch(if_metageneration_match=1)
    assert found.download_as_bytes() == BYTES


def test_composition_is_its_components(part: Part) -> None:
    for name, data in (("one", BYTES), ("two", b""), ("three", b"end")):
        part.bucket.blob(f"composed/{name}").upload_from_string(data)
    target = part.bucket.blob("composed/all")
    target.content_type = "a/b"
    target.compose([part.bucket.blob(f"composed/{name}") for name in ("one", "two", "three")])
    target.reload()
    assert (target.crc32c, target.component_count) == (crc32c(BYTES + b"end"), 3)
    assert target.md5_hash is None and target.download_as_bytes() == BYTES + b"end"
    with pytest.raises(refusals.PreconditionFailed):
        target.compose([part.bucket.blob("composed/one")], if_generation_match=0)
    with pytest.raises(refusals.NotFound):
        target.compose([part.bucket.blob("composed/absent")])


def test_deletion_honours_conditions(part: Part) -> None:
    blob = part.bucket.blob("deleted/deep/down")
    blob.upload_from_string(b"x")
    with pytest.raises(refusals.PreconditionFailed):
        blob.delete(if_generation_match=blob.generation + 1)
    blob.delete(if_generation_match=blob.generation)
    with pytest.raises(refusals.NotFound):
        part.bucket.blob("deleted/deep/down").delete()


def test_batch_answers_each_call(part: Part) -> None:
    client = part.client
    blobs = [client.bucket(BUCKET).blob(f"batch/{number}") for number in range(3)]
    for blob in blobs:
        blob.upload_from_string(b"x")
    with client.batch():
        blobs[0].delete()
        blobs[1].metadata = {"k": "v"}
        blobs[1].patch()
    assert [blob.name for blob in part.client.list_blobs(BUCKET, prefix="batch/")] == ["batch/1", "batch/2"]
    assert part.bucket.get_blob("batch/1").metadata == {"k": "v"}
    with pytest.raises(refusals.NotFound), client.batch():
        blobs[0].delete()
        blobs[2].delete()
    assert part.bucket.get_blob("batch/2") is None


def test_listing_has_prefixes_delimiters_pages_and_fields(part: Part) -> None:
    for index in range(7):
        part.bucket.blob(f"list/{index % 3}/{index}").upload_from_string(b"x" * index)
    pages = part.client.list_blobs(BUCKET, prefix="list/", page_size=3).pages
    names = [[blob.name for blob in page] for page in pages]
    every = [f"list/{index % 3}/{index}" for index in range(7)]
    assert [len(page) for page in names] == [3, 3, 1] and [*names[0], *names[1], *names[2]] == sorted(every)
    folders = part.client.list_blobs(BUCKET, prefix="list/", delimiter="/")
    assert list(folders) == [] and sorted(folders.prefixes) == ["list/0/", "list/1/", "list/2/"]
    url = f"{part.url}/storage/v1/b/{BUCKET}/o?prefix=list/2/&fields=items(name,size),nextPageToken"
    assert requests.get(url, timeout=10).json() == {
        "items": [{"name": "list/2/2", "size": "2"}, {"name": "list/2/5", "size": "5"}]
    }
    blob = next(iter(part.client.list_blobs(BUCKET, prefix="list/2/5")))
    assert (blob.crc32c, blob.metageneration) == (crc32c(b"x" * 5), 1)


def test_obstore_reads_writes_and_copies(part: Part) -> None:
    store = GCSStore(
        BUCKET,
        config={"base_url": part.url},
        client_options={"allow_http": True},
        credential_provider=lambda: {"token": "any", "expires_at": None},
    )
    data = os.urandom(12 * MIB)
    obstore.put(store, "obstore/a", data, chunk_size=5 * MIB, max_concurrency=2)
    assert bytes(obstore.get_range(store, "obstore/a", start=5, length=10)) == data[5:15]
    obstore.copy(store, "obstore/a", "obstore/b")
    with pytest.raises(obstore.exceptions.AlreadyExistsError):
        obstore.put(store, "obstore/b", b"x", mode="create")
    obstore.rename(store, "obstore/b", "obstore/c")
    listed = {meta["path"]: meta for page in obstore.list(store, "obstore") for meta in page}
    assert set(listed) == {"obstore/a", "obstore/c"}
    assert listed["obstore/c"]["e_tag"] == obstore.head(store, "obstore/c")["e_tag"]
    assert bytes(obstore.get(store, "obstore/c").bytes()) == data
    obstore.delete(store, ["obstore/a", "obstore/c"])
