"""The errors a person sees: one sentence that names the place and the remedy, and the exit code that goes with it."""


class SpinloopError(Exception):
    """A failure whose message is for a person. Exit code 1."""

    exit_code = 1


class BadInput(SpinloopError):
    """The profile, dataset or model cannot be used as it is. Names the file, line or field and the remedy. Exit code
    2."""

    exit_code = 2


class StageFailed(SpinloopError):
    """A stage began and did not finish; nothing of it was published."""


class ChildDied(StageFailed):
    """The stage's process, or one that it started, ended without an answer: killed, out of memory, crashed. Worth
    another try, in a new process."""


class StoreError(SpinloopError):
    """The artifact store cannot be read or written (full, read-only, wrong format)."""
