"""Puts tests/ on the path, for its helpers, and names the marker of the large runs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))


def pytest_configure(config):
    config.addinivalue_line("markers", "full: full SD-v1.4 size, about 5 GB of memory and minutes on one core")
