"""Checkpoint formats: torch archives read without torch, safetensors written, validated and proved."""

from streamway.weights.convert import ConvertedWeights, convert_weights

__all__ = ["ConvertedWeights", "convert_weights"]
