"""A part whose checks do what a check may do at its worst: for the tests of the frame, not for a GPU."""

import os
import time

from tests.gpu.proof import Figures, Proof, Skip

LIMIT = 3


def passes(proof: Proof) -> Figures:
    return {"answer": 42}


def is_not_here(proof: Proof) -> Figures:
    raise Skip("flash-attn is not installed")


def is_wrong(proof: Proof) -> Figures:
    raise AssertionError("2 is not 3")


def raises(proof: Proof) -> Figures:
    raise ValueError("of a kind that\nnobody expected")


def dies(proof: Proof) -> Figures:
    os.abort()


def waits(proof: Proof) -> Figures:
    time.sleep(600)
    return {}


def comes_last(proof: Proof) -> Figures:
    return {}


CHECKS = (passes, is_not_here, is_wrong, raises, dies, waits, comes_last)
