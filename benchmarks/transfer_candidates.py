"""Which client should carry the bytes: each candidate reads from the local Hub and writes to the local Cloud Storage.

    python benchmarks/transfer_candidates.py --gb 1 --work /some/folder

Every candidate runs in a process of its own, alone; time, processor time and peak memory are its own, the servers'
processor time is given beside it because they share the machine. The servers are those of the sandbox.
"""

import argparse
import asyncio
import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from transfer_servers import Measured, Servers, measure

MIB = 1024 * 1024
PART = 32 * MIB
AT_ONCE = 8
REPEATS = 3


def parts_of(size: int) -> Iterator[tuple[int, int]]:
    return ((offset, min(PART, size - offset)) for offset in range(0, size, PART))


def in_threads(work: Callable[[int, int, int], None], size: int) -> None:
    """Give the parts of a file to eight threads."""
    waiting = list(enumerate(parts_of(size)))[::-1]

    def run() -> None:
        while True:
            try:
                number, (offset, length) = waiting.pop()
            except IndexError:
                return
            work(number, offset, length)

    threads = [threading.Thread(target=run) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# Reading: ranges of one file of the Hub, at its signed address, into memory. obstore's HTTP store drops the query of
# an address, where the signature is, so it cannot take part.


def read_urllib3(address: str, size: int, path: str) -> None:
    from streamway.storage.http import HttpClient, read_range

    client, memory = HttpClient(), threading.local()

    def work(number: int, offset: int, length: int) -> None:
        if not hasattr(memory, "view"):
            memory.view = memoryview(bytearray(PART))
        response = client.open("GET", address, {"Range": f"bytes={offset}-{offset + length - 1}"})
        assert read_range(client, response, memory.view[:length], offset, size) == length

    in_threads(work, size)


def read_requests(address: str, size: int, path: str) -> None:
    import requests

    session = requests.Session()

    def work(number: int, offset: int, length: int) -> None:
        with session.get(address, headers={"Range": f"bytes={offset}-{offset + length - 1}"}, stream=True) as answer:
            assert sum(len(chunk) for chunk in answer.iter_content(MIB)) == length

    in_threads(work, size)


def read_httpx(address: str, size: int, path: str) -> None:
    import httpx

    with httpx.Client(timeout=60) as client:

        def work(number: int, offset: int, length: int) -> None:
            headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
            with client.stream("GET", address, headers=headers) as answer:
                assert sum(len(chunk) for chunk in answer.iter_raw()) == length

        in_threads(work, size)


def read_aiohttp(address: str, size: int, path: str) -> None:
    import aiohttp

    async def run() -> None:
        limit = asyncio.Semaphore(AT_ONCE)
        async with aiohttp.ClientSession(read_bufsize=MIB) as session:

            async def work(offset: int, length: int) -> None:
                headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
                async with limit, session.get(address, headers=headers) as answer:
                    assert sum([len(chunk) async for chunk in answer.content.iter_any()]) == length

            await asyncio.gather(*(work(*part) for part in parts_of(size)))

    asyncio.run(run())


def read_hf(address: str, size: int, path: str) -> None:
    import huggingface_hub

    found = huggingface_hub.hf_hub_download("bench/candidates", "model.safetensors", cache_dir=f"{path}.cache")
    assert Path(found).stat().st_size == size


# Writing: one file that lies in the page cache, to one object.


def pieces(path: str, size: int) -> Callable[[int, int], memoryview]:
    descriptor, memory = os.open(path, os.O_RDONLY), threading.local()

    def read(offset: int, length: int) -> memoryview:
        if not hasattr(memory, "view"):
            memory.view = memoryview(bytearray(PART))
        view = memory.view[:length]
        assert os.preadv(descriptor, [view], offset) == length
        return view

    return read


def write_urllib3(address: str, size: int, path: str) -> None:
    from streamway.storage.addresses import ObjectAddress
    from streamway.storage.cloud import cloud_storage
    from streamway.storage.digests import crc32c, join_crc32c

    cloud, target, read = cloud_storage(), ObjectAddress("bench", "urllib3"), pieces(path, size)
    upload_id, done = cloud.start_upload(target, {}), {}

    def work(number: int, offset: int, length: int) -> None:
        view = read(offset, length)
        checksum = crc32c(view)
        done[number] = cloud.upload_part(target, upload_id, number + 1, view, checksum), checksum, length

    in_threads(work, size)
    parts = [done[number] for number in sorted(done)]
    checksum = join_crc32c((checksum, length) for _, checksum, length in parts)
    cloud.complete_upload(target, upload_id, [part for part, _, _ in parts], size_bytes=size, checksum=checksum)


def write_requests(address: str, size: int, path: str) -> None:
    import requests

    session, read, etags = requests.Session(), pieces(path, size), {}
    url = f"{os.environ['STORAGE_EMULATOR_HOST']}/bench/requests"
    upload = session.post(f"{url}?uploads").text.partition("<UploadId>")[2].partition("</")[0]

    def work(number: int, offset: int, length: int) -> None:
        answer = session.put(f"{url}?partNumber={number + 1}&uploadId={upload}", data=read(offset, length).tobytes())
        etags[number] = answer.headers["ETag"]

    in_threads(work, size)
    session.post(f"{url}?uploadId={upload}", data=completion(etags)).raise_for_status()


def write_aiohttp(address: str, size: int, path: str) -> None:
    import aiohttp

    async def run() -> None:
        read, limit, etags = pieces(path, size), asyncio.Semaphore(AT_ONCE), {}
        url = f"{os.environ['STORAGE_EMULATOR_HOST']}/bench/aiohttp"
        async with aiohttp.ClientSession() as session:
            async with session.post(f"{url}?uploads") as answer:
                upload = (await answer.text()).partition("<UploadId>")[2].partition("</")[0]

            async def work(number: int, offset: int, length: int) -> None:
                async with limit:
                    data = bytes(read(offset, length))
                    query = f"{url}?partNumber={number + 1}&uploadId={upload}"
                    async with session.put(query, data=data) as answer:
                        etags[number] = answer.headers["ETag"]

            await asyncio.gather(*(work(number, *part) for number, part in enumerate(parts_of(size))))
            async with session.post(f"{url}?uploadId={upload}", data=completion(etags)) as answer:
                answer.raise_for_status()

    asyncio.run(run())


def completion(etags: dict[int, str]) -> str:
    rows = "".join(
        f"<Part><PartNumber>{number + 1}</PartNumber><ETag>{etags[number]}</ETag></Part>" for number in sorted(etags)
    )
    return f"<CompleteMultipartUpload>{rows}</CompleteMultipartUpload>"


def write_obstore(address: str, size: int, path: str) -> None:
    import obstore
    from obstore.store import GCSStore

    store = GCSStore(
        "bench",
        config={"base_url": os.environ["STORAGE_EMULATOR_HOST"], "bearer_token": "none"},
        client_options={"allow_http": True, "timeout": "300s"},
    )
    obstore.put(store, "obstore", Path(path), use_multipart=True, chunk_size=PART, max_concurrency=AT_ONCE)


def write_google_default(address: str, size: int, path: str) -> None:
    google_bucket().blob("google-default").upload_from_filename(path, timeout=600)


def write_google_threads(address: str, size: int, path: str) -> None:
    google_chunks(path, "thread")


def write_google_processes(address: str, size: int, path: str) -> None:
    google_chunks(path, "process")


def google_chunks(path: str, kind: str) -> None:
    from google.cloud.storage import transfer_manager

    blob = google_bucket().blob(f"google-{kind}")
    transfer_manager.upload_chunks_concurrently(
        path, blob, chunk_size=PART, max_workers=AT_ONCE, worker_type=kind, deadline=600
    )


def google_bucket():  # type: ignore[no-untyped-def]
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    return storage.Client(project="bench", credentials=AnonymousCredentials()).bucket("bench")


READERS = {
    "urllib3 (ours)": read_urllib3,
    "requests": read_requests,
    "httpx": read_httpx,
    "aiohttp": read_aiohttp,
    "huggingface_hub, to disk": read_hf,
}
WRITERS = {
    "urllib3, XML parts (ours)": write_urllib3,
    "requests, XML parts": write_requests,
    "aiohttp, XML parts": write_aiohttp,
    "obstore": write_obstore,
    "google-cloud-storage, default": write_google_default,
    "google transfer_manager, threads": write_google_threads,
    "google transfer_manager, processes": write_google_processes,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=1.0, help="size of the file, in 10^9 bytes")
    parser.add_argument("--work", type=Path, required=True, help="a folder with room for four such files")
    parser.add_argument("--run", nargs=2, metavar=("ADDRESS", "NAME"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    size = int(given.gb * 1e9)
    path = given.work / "candidates.bin"
    if given.run:
        address, name = given.run
        (READERS | WRITERS)[name](address, size, str(path))
        return
    with Servers(given.work, buckets="bench=US-CENTRAL1") as servers:
        make_file(path, size)
        address = servers.push_file("bench/candidates", "model.safetensors", path)
        for title, candidates in (("Read", READERS), ("Write", WRITERS)):
            print(f"\n| {title} {given.gb:g} GB | MB/s | own CPU s | servers' CPU s | peak MiB |")
            print("|---|---|---|---|---|")
            for name in candidates:
                print(row(name, size, best_of(servers, given, address, name)), flush=True)


def best_of(servers: Servers, given: argparse.Namespace, address: str, name: str) -> tuple[Measured, float]:
    """Return the fastest of a few runs, because other work on the machine can only slow one down."""
    runs = []
    for _ in range(REPEATS):
        command = [sys.executable, __file__, "--gb", str(given.gb), "--work", str(given.work), "--run", address, name]
        before = servers.cpu_seconds()
        measured = measure(command, environment=servers.environment)
        runs.append((measured, servers.cpu_seconds() - before))
        servers.empty_bucket("bench")
        servers.remove(given.work / "candidates.bin.cache")
    return min(runs, key=lambda run: run[0].seconds)


def row(name: str, size: int, run: tuple[Measured, float]) -> str:
    measured, servers_cpu = run
    speed = size / measured.seconds / 1e6
    memory = measured.peak_bytes / MIB
    return f"| {name} | {speed:.0f} | {measured.cpu_seconds:.1f} | {servers_cpu:.1f} | {memory:.0f} |"


def make_file(path: Path, size: int) -> None:
    block = hashlib.shake_256(b"block").digest(16 * MIB)
    with path.open("wb") as file:
        for offset in range(0, size, len(block)):
            file.write(block[: size - offset])


if __name__ == "__main__":
    main()
