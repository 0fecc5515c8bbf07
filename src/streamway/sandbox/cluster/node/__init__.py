"""The nodes: pods become processes of this machine."""
