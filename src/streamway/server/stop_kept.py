"""Run in the cluster when the time of a kept revision is over: stop it, unless it serves again or is kept for longer.

This file is put into the CronJob's manifest as it stands, so it uses nothing but Python's own library.
"""

from __future__ import annotations

import calendar
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
ATTEMPTS = 8
# A schedule counts minutes and clocks differ; what is earlier than that is another year, or a wrong clock.
MOST_EARLY_SECONDS = 120


def ask(method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask the API server as this pod's own account."""
    token = Path(ACCOUNT, "token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/merge-patch+json"}
    host = os.environ["KUBERNETES_SERVICE_HOST"]
    url = f"https://{f'[{host}]' if ':' in host else host}:{os.environ['KUBERNETES_SERVICE_PORT']}{path}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, method=method, headers=headers, data=data)
    trusted = ssl.create_default_context(cafile=f"{ACCOUNT}/ca.crt")
    with urllib.request.urlopen(request, timeout=10, context=trusted) as answer:
        return dict(json.loads(answer.read()))


def stop(service: str, deployment: str, record: dict[str, str], selected: dict[str, str]) -> str:
    """Scale a Deployment to nothing if its Service's record still says so; return what was done."""
    scale = ask("GET", deployment + "/scale")
    found = ask("GET", service)
    if selected.items() <= (found["spec"].get("selector") or {}).items():
        return "It serves again, and is left alone."
    if not record.items() <= (found["metadata"].get("annotations") or {}).items():
        return "It is not kept until now any more, and is left alone."
    if not scale["spec"].get("replicas"):
        return "It has been stopped already."
    # Refused where the Deployment has changed since it was looked at.
    version = scale["metadata"]["resourceVersion"]
    wanted = {"metadata": {"resourceVersion": version}, "spec": {"replicas": 0}}
    ask("PATCH", deployment + "/scale?fieldManager=streamway-scale", wanted)
    return "Its time is over, and it was stopped."


def main(service: str, deployment: str, until: str, record: str, selected: str) -> str | None:
    """Wait for the moment, then act; return what is wrong.

    Args:
        service: Path of the endpoint's Service.
        deployment: Path of the Deployment that is kept.
        until: Until when, as Kubernetes writes times.
        record: The annotations of the Service that say so, as JSON.
        selected: The labels by which the Service would select it, as JSON.
    """
    left = calendar.timegm(time.strptime(until, "%Y-%m-%dT%H:%M:%SZ")) - time.time()
    if left > MOST_EARLY_SECONDS:
        return f"It is kept until {until}, which is {left:.0f} s from now: too early to stop it."
    time.sleep(max(0.0, left))
    attempt = 0
    while True:
        try:
            sys.stdout.write(stop(service, deployment, json.loads(record), json.loads(selected)) + "\n")
            return None
        except urllib.error.HTTPError as error:
            if error.code == 404:
                sys.stdout.write("The endpoint is gone, and there is nothing to stop.\n")
                return None
            passing, why = error.code in (409, 429) or error.code >= 500, f"{error.code} {error.read().decode()}"
        except OSError as error:
            passing, why = True, str(error)
        if not passing or attempt == ATTEMPTS:
            return f"The API server does not let {deployment} be stopped: {why}"
        time.sleep(min(2**attempt * 0.25, 30))
        attempt += 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:6]))
