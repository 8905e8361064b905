"""Every graph that a test compiles is verified after every pass."""
from __future__ import annotations

import os

os.environ.setdefault("TILEWRIGHT_DEBUG", "1")
