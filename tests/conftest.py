"""Every graph that a test compiles is verified after every pass; what is compiled is cached in the checkout, not in the user's home."""
from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("TILEWRIGHT_DEBUG", "1")
os.environ.setdefault("TILEWRIGHT_CACHE", str(Path(__file__).parent.parent / ".cache" / "tests"))
