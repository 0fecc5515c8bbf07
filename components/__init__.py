"""The contracts of the pipelines, one component in each file."""

from streamway.components.check_parameters import check_parameters
from streamway.components.convert_weights import convert_weights
from streamway.components.deploy_server import deploy_server
from streamway.components.enable_cache import enable_cache
from streamway.components.plan_retirement import plan_retirement
from streamway.components.promote_release import promote_release
from streamway.components.pull_model import pull_model
from streamway.components.record_passage import record_passage
from streamway.components.report_run import report_run
from streamway.components.retire_cache import retire_cache
from streamway.components.retire_releases import retire_releases
from streamway.components.retire_server import retire_server
from streamway.components.smoke_test import smoke_test
from streamway.components.upload_model import upload_model

__all__ = [
    "check_parameters",
    "convert_weights",
    "deploy_server",
    "enable_cache",
    "plan_retirement",
    "promote_release",
    "pull_model",
    "record_passage",
    "report_run",
    "retire_cache",
    "retire_releases",
    "retire_server",
    "smoke_test",
    "upload_model",
]
