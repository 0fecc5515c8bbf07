"""What runs in which order."""

from streamway.pipelines.promote_model import promote_model
from streamway.pipelines.retire_model import retire_model
from streamway.pipelines.serve_model import serve_model

PIPELINES = {"serve_model": serve_model, "promote_model": promote_model, "retire_model": retire_model}

__all__ = ["PIPELINES", "promote_model", "retire_model", "serve_model"]
