"""A Kubernetes cluster in one process, for machines that have none.

It speaks the real API to real clients (the `kubernetes` package, kubectl) and runs pods as local processes, so that
the code that deploys to GKE is tried unchanged. The rooms:

    api/       the API server: types from Kubernetes' own OpenAPI definitions, validation, server-side apply, watches,
               logs, exec, the service proxy, access control, and the knobs of /sandbox/ by which tests cause trouble
    control/   the control plane: deployments, replica sets, scheduling, endpoints, garbage, namespaces
    node/      the nodes: images as local environments, containers as processes, probes, volumes, addresses

What it is not: there is no network between pods but this machine's loopback, no DNS for Services, no mounts (paths are
rewritten, see node/rewriting.py), no isolation of one container from another.
"""
