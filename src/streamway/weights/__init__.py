"""Checkpoint formats: torch archives read without torch, safetensors written, validated and proved."""

from streamway.weights.convert import ConvertedWeights, convert_weights
from streamway.weights.findings import Finding
from streamway.weights.reports import report_lines
from streamway.weights.sizes import planned_bytes
from streamway.weights.validate import ValidationReport, validate

__all__ = [
    "ConvertedWeights",
    "Finding",
    "ValidationReport",
    "convert_weights",
    "planned_bytes",
    "report_lines",
    "validate",
]
