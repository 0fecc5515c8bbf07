"""How Kubernetes, being written in Go, says that a connection could not be made."""

import os


def dial_failure(host: str, port: int, error: OSError) -> str:
    """Say why a connection failed, as Go's net package does.

    Args:
        host: The address that was tried.
        port: The port that was tried.
        error: What happened.
    """
    if error.errno is None:
        return f"dial tcp {host}:{port}: {error}"
    return f"dial tcp {host}:{port}: connect: {os.strerror(error.errno).lower()}"
