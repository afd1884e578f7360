"""The proof that a GPU computes what is promised: `python3 -m tests.gpu` (docs/gpu.md).

Parts in order of worth (`PARTS`), each a module with a docstring and `CHECKS`, functions of one `Proof` that give
figures, raise AssertionError where what was promised is not so, or Skip where it cannot be on this device. None is a
test that pytest collects; test_rehearsal.py runs them on a CPU with tiny sizes.
"""

import sys
from pathlib import Path

PARTS = {"correct": 0.3, "fast": 0.3, "estimates": 0.15, "whole": 0.25}
"""Each part's share of the time, in the order in which they run; what one leaves over is the later ones'."""
TRAINING_DATA = str(Path(__file__).resolve().parents[1] / "training")
if TRAINING_DATA not in sys.path:  # its modules of made-up data import each other by their bare names
    sys.path.append(TRAINING_DATA)
