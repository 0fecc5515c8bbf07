"""A Hub and a bucket, as the tests of pulling have them."""

import importlib.util
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location("hub_parts", Path(__file__).parents[1] / "hub" / "conftest.py")
assert _SPEC and _SPEC.loader
_parts = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_parts)

_bucket_part, _hub_part = _parts._bucket_part, _parts._hub_part
cloud, bucket_uri, hub = _parts.cloud, _parts.bucket_uri, _parts.hub
