"""The control plane: loops that make what is into what was asked for."""
