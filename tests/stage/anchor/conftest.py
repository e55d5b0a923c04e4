"""Makes `toy_job`, the pool of processes and the two tasks importable."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "distributed"))
sys.path.insert(0, str(Path(__file__).parent))
