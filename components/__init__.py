"""The contracts of the pipeline, one component in each file."""

from streamway.components.convert_weights import convert_weights
from streamway.components.deploy_server import deploy_server
from streamway.components.enable_cache import enable_cache
from streamway.components.pull_model import pull_model
from streamway.components.report_run import report_run
from streamway.components.smoke_test import smoke_test
from streamway.components.upload_model import upload_model

__all__ = [
    "convert_weights",
    "deploy_server",
    "enable_cache",
    "pull_model",
    "report_run",
    "smoke_test",
    "upload_model",
]
