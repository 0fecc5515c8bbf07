"""Run in the pod before the engine: can its account list and read the release? Says why not in one sentence.

The streamer reports a wrong path, a missing bucket and a missing right with the same words, at the end of a long log.
This file is put into the pod's manifest as it stands, so it uses nothing but Python's own library.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

METADATA_HOST = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
METADATA = f"http://{METADATA_HOST}/computeMetadata/v1/instance/service-accounts/default/"
ATTEMPTS = 8


def fetch(url: str, headers: dict[str, str]) -> bytes:
    """Read a URL; wait for a network or an identity that is only a moment late, as both are in a new pod."""
    attempt = 0
    while True:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
                return bytes(answer.read())
        except OSError as error:
            passing = not isinstance(error, urllib.error.HTTPError) or error.code >= 500 or error.code == 429
            if not passing or attempt == ATTEMPTS:
                raise
        time.sleep(min(2**attempt * 0.25, 5))
        attempt += 1


def main(release_uri: str, account: str) -> str | None:
    """Check one release; return what is wrong."""
    bucket, _, prefix = release_uri.removeprefix("gs://").partition("/")
    prefix = prefix.rstrip("/") + "/"
    base = os.environ.get("STORAGE_EMULATOR_HOST", "")
    headers: dict[str, str] = {}
    identity = f"service account {account}"
    if not base:
        base = "https://storage.googleapis.com"
        ask = {"Metadata-Flavor": "Google"}
        try:
            token = json.loads(fetch(METADATA + "token", ask))["access_token"]
            identity += f" (as {fetch(METADATA + 'email', ask).decode()})"
        except (OSError, ValueError, KeyError) as error:
            return f"The {identity} gets no Google Cloud identity: {error}. Bind it with Workload Identity."
        headers["Authorization"] = f"Bearer {token}"
    url = f"{base if '://' in base else 'http://' + base}/storage/v1/b/{bucket}"
    step, role = f"list gs://{bucket}/{prefix}", "objectViewer"
    try:
        query = urllib.parse.urlencode({"prefix": prefix, "delimiter": "/", "fields": "items(name,size)"})
        items = json.loads(fetch(f"{url}/o?{query}", headers)).get("items", [])
        weights = [item for item in items if item["name"].endswith(".safetensors")]
        if not weights:
            return f"There is no safetensors file under gs://{bucket}/{prefix}: {len(items)} files."
        step = f"read gs://{bucket}/{weights[0]['name']}"
        name = urllib.parse.quote(weights[0]["name"], safe="")
        fetch(f"{url}/o/{name}?alt=media", {**headers, "Range": "bytes=0-7"})
        step, role = f"see the bucket {bucket} (storage.buckets.get, which the streamer needs)", "bucketViewer"
        fetch(f"{url}?fields=name", headers)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return f"The bucket {bucket} or the release gs://{bucket}/{prefix} does not exist."
        if error.code in (401, 403):
            return f"The {identity} may not {step}: grant it roles/storage.{role} on the bucket."
        return f"Cloud Storage answers {error.code} where the {identity} wants to {step}."
    except OSError as error:
        return f"Cloud Storage cannot be reached at {base} to {step}: {error}."
    size = sum(int(item["size"]) for item in weights)
    sys.stdout.write(f"The {identity} can read {len(weights)} weight files, {size / 2**30:.2f} GiB.\n")
    return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
