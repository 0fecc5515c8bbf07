"""/sandbox/...: the knobs by which a test makes the environment misbehave. No client of a cluster knows them.

GET    /sandbox/faults                         what goes wrong now
DELETE /sandbox/faults                         let everything go well again
POST   /sandbox/denials        {message, ...}  an admission webhook that refuses (see faults.Denial)
POST   /sandbox/prohibitions   {verb, ...}     a missing permission (see faults.Prohibition)
POST   /sandbox/proxy-refusals {count}         the service proxy answers 503 so many times
POST   /sandbox/outage         {seconds}       the API server breaks every connection for a while
POST   /sandbox/watches/drop                   break every open watch connection
POST   /sandbox/watches/expire                 end every watch with 410 and forget the history
POST   /sandbox/nodes          {count, gpus, zone}  how many nodes there are, and each one's accelerators
POST   /sandbox/pods/NS/NAME/evict    {message}  the node runs out of a resource
POST   /sandbox/pods/NS/NAME/preempt  {}         a pod of higher priority takes the place
POST   /sandbox/pods/NS/NAME/kill     {container, signal}  a process dies
POST   /sandbox/node-settings  {...}           see node.settings.NodeSettings
POST   /sandbox/clock          {advance_seconds}  the schedules of CronJobs come nearer
"""

import dataclasses
import json
import time
from typing import Any, Protocol

from aiohttp import web

from streamway.sandbox.clock import Clock
from streamway.sandbox.cluster.api.bodies import read_body
from streamway.sandbox.cluster.api.faults import Faults, read_denial, read_prohibition
from streamway.sandbox.cluster.api.statuses import bad_request, expired, no_such_path
from streamway.sandbox.cluster.api.watching import Watches
from streamway.sandbox.cluster.objects import Object


class Environment(Protocol):
    """What can be done to the machines of a cluster."""

    def set_nodes(self, wanted: Object) -> Object:
        """Change the number of nodes, their accelerators or their zone; gives what there is now."""

    def disturb_pod(self, action: str, namespace: str, name: str, details: Object) -> None:
        """Evict, preempt or kill a pod.

        Raises:
            ApiError: 404 for an unknown pod or action.
        """

    def change_settings(self, wanted: Object) -> Object:
        """Change how the node behaves; gives all settings."""


class Knobs:
    """The knobs.

    Args:
        faults: What goes wrong.
        watches: The open watches.
        environment: The machines.
        clock: What schedules go by.
    """

    def __init__(self, faults: Faults, watches: Watches, environment: Environment, clock: Clock) -> None:
        self._faults = faults
        self._watches = watches
        self._environment = environment
        self._clock = clock

    async def answer(self, request: web.Request) -> web.Response:
        """Answer a request below /sandbox/.

        Raises:
            ApiError: 404 or 400.
        """
        steps = request.path.strip("/").split("/")[1:]
        body = await read_body(request) or {}
        try:
            return web.Response(text=json.dumps(self._turn(request.method, steps, body)))
        except (TypeError, ValueError, KeyError) as error:
            raise bad_request(f"{request.path} does not understand {json.dumps(body)}: {error}") from error

    def _turn(self, method: str, steps: list[str], body: Object) -> Any:
        if steps == ["faults"]:
            if method == "DELETE":
                self._faults.clear()
            return dataclasses.asdict(self._faults)
        if method != "POST":
            raise no_such_path()
        if steps[0] == "pods" and len(steps) == 4:
            self._environment.disturb_pod(steps[3], steps[1], steps[2], body)
            return {}
        return self._post("/".join(steps), body)

    def _post(self, path: str, body: Object) -> Any:
        if path == "denials":
            self._faults.denials.append(read_denial(body))
        elif path == "prohibitions":
            self._faults.prohibitions.append(read_prohibition(body))
        elif path == "proxy-refusals":
            self._faults.proxy_refusals = int(body["count"])
        elif path == "outage":
            self._faults.outage_until = time.monotonic() + float(body["seconds"])
            return {"ended": self._watches.end_all()}
        elif path == "watches/drop":
            return {"ended": self._watches.end_all()}
        elif path == "watches/expire":
            self._watches.forget_history()
            return {"ended": self._watches.end_all(expired("The resourceVersion for the provided watch is too old."))}
        elif path == "nodes":
            return self._environment.set_nodes(body)
        elif path == "clock":
            self._clock.advance(float(body["advance_seconds"]))
            return {"now": self._clock.stamp()}
        elif path == "node-settings":
            return self._environment.change_settings(body)
        else:
            raise no_such_path()
        return dataclasses.asdict(self._faults)
