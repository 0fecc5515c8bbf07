"""Conversions with their arguments shortened."""

from typing import Any

from streamway.weights import ConvertedWeights, convert_weights


def convert(source: str, target: str, **more: Any) -> ConvertedWeights:
    return convert_weights(snapshot_uri=source, weights_uri=target, **more)


def shards_of(converted: ConvertedWeights) -> list[str]:
    return [file.uri for file in converted.files if file.path.endswith(".safetensors")]
