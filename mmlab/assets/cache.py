"""The cache directory: where what was fetched, converted and prepared lies."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """The folder named by the environment variable `MMLAB_CACHE`, or the platform's usual place."""
    named = os.environ.get("MMLAB_CACHE")
    return Path(named).expanduser() if named else platformdirs.user_cache_path("mmlab")
