"""The sandbox's Cloud Storage as a process, with Google's own client and plain requests."""

import base64
import re
import subprocess
from pathlib import Path
from typing import Any

import google_crc32c
import requests
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from part_processes import announcement, start_part

MIB = 1024**2


BUCKET = "models"


BYTES = bytes(range(256)) * 4096 + b"the end"


class Part:
    """The part as a process, with clients."""

    def __init__(self, state_path: Path) -> None:
        self.state_path = state_path
        self.process = self._start()
        self.url: str = self.announced["url"]

    @property
    def announced(self) -> dict[str, Any]:
        return announcement("bucket", self.state_path)

    @property
    def log(self) -> str:
        return (self.state_path / "bucket.log").read_text()

    def _start(self) -> subprocess.Popen[bytes]:
        buckets = f"{BUCKET}=US-CENTRAL1,europe=EU,pair=US-CENTRAL1+US-EAST1"
        return start_part("bucket", self.state_path, "--buckets", buckets)

    def kill_and_start_again(self) -> None:
        self.process.kill()
        self.process.wait(timeout=10)
        self.process = self._start()
        self.url = self.announced["url"]

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(timeout=10)

    @property
    def client(self) -> storage.Client:
        return storage.Client(
            project="sandbox", credentials=AnonymousCredentials(), client_options={"api_endpoint": self.url}
        )

    @property
    def bucket(self) -> storage.Bucket:
        return self.client.bucket(BUCKET)

    def xml(self, name: str) -> str:
        return f"{self.url}/{BUCKET}/{name}"

    def arm(self, **fault: Any) -> None:
        requests.post(f"{self.url}/sandbox/faults", json=fault, timeout=10).raise_for_status()

    def counted(self) -> list[dict[str, Any]]:
        counters = requests.get(f"{self.url}/sandbox/counters", timeout=10).json()
        found: list[dict[str, Any]] = counters["requests"]
        return found

    def forget(self) -> None:
        requests.delete(f"{self.url}/sandbox/faults", timeout=10)
        requests.delete(f"{self.url}/sandbox/counters", timeout=10)

    def start_parts(self, name: str, **headers: str) -> str:
        answer = requests.post(self.xml(f"{name}?uploads"), headers=headers, timeout=10)
        found = re.search("<UploadId>(.+)</UploadId>", answer.text)
        assert found is not None, answer.text
        return found[1]

    def put_part(self, name: str, upload_id: str, number: int, data: bytes) -> str:
        url = self.xml(f"{name}?partNumber={number}&uploadId={upload_id}")
        answer = requests.put(url, data=data, timeout=30)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-goog-hash"] == f"crc32c={crc32c(data)}"
        return answer.headers["ETag"]

    def complete(self, name: str, upload_id: str, etags: list[tuple[int, str]], **headers: str) -> requests.Response:
        parts = "".join(f"<Part><PartNumber>{n}</PartNumber><ETag>{e}</ETag></Part>" for n, e in etags)
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>"
        return requests.post(self.xml(f"{name}?uploadId={upload_id}"), data=body, headers=headers, timeout=30)


def crc32c(data: bytes) -> str:
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


def addresses(part: Part) -> list[str]:
    json_path = f"/storage/v1/b/{BUCKET}/o/reads%2Fa%20b.bin?alt=media"
    return [part.url + json_path, f"{part.url}/download{json_path}", part.xml("reads/a%20b.bin")]
