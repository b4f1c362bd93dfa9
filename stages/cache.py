"""Where this machine keeps copies of what lies elsewhere."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`~/.cache/realword`, or below XDG_CACHE_HOME."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "realword"
