"""What runs in which order."""

from streamway.pipelines.serve_model import serve_model

PIPELINES = {"serve_model": serve_model}

__all__ = ["PIPELINES", "serve_model"]
