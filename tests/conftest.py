"""Tests run on eight virtual CPU devices, so that every mesh can be tried anywhere.

These are environment variables, so the commands that tests start have the same devices.
"""

import os
import sys

assert "jax" not in sys.modules, "jax reads these variables when it is imported: too late to set them"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
