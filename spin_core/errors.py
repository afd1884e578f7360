"""The errors a person sees: one sentence that names the place and the remedy, and the exit code that goes with it."""


class SpinloopError(Exception):
    """A failure whose message is for a person. Exit code 1.

    What cannot be printed is escaped: names and texts in it come from files, and a terminal obeys what it is sent.
    """

    exit_code = 1
    kept = "\n\t"
    """Of what has no shape: the last lines of a process have line ends."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message), self.kept))


def printable(text: str, kept: str = "") -> str:
    """`text` with escapes like `\\x1b` and `\\u202e` in place of what is no visible character, space or one of
    `kept`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else ascii(c)[1:-1] for c in text)


def one_line(error: object, limit: int = 200, kind: bool = False) -> str:
    """An error (or its text) as one line of at most `limit` characters, to be part of a sentence; with `kind` its
    class is named first, `ValueError: …`."""
    text = f"{type(error).__name__}: {error}" if kind else str(error)
    return " ".join(text.split())[:limit]


class BadInput(SpinloopError):
    """The profile, dataset or model cannot be used as it is. Names the file, line or field and the remedy. Exit code
    2."""

    exit_code = 2
    kept = ""


class Unreachable(BadInput):
    """A hub id that is not here, and the hub cannot be reached: a run cannot begin, but its costs can be shown."""


class StageFailed(SpinloopError):
    """A stage began and did not finish; nothing of it was published."""


class ChildDied(StageFailed):
    """The stage's process, or one that it started, ended without an answer: killed, out of memory, crashed. Worth
    another try, in a new process."""


class NotReloaded(ChildDied):
    """An engine that was kept cannot answer for the next model, or would answer for another one. A fresh one does; the
    process is ended and the work goes on at once."""


class Stopped(StageFailed):
    """The run was asked to end (SIGTERM) and did so in order: what is finished is published, a training has a
    checkpoint. Exit code 75, that of sysexits.h for "try again later"."""

    exit_code = 75


class StoreError(SpinloopError):
    """The artifact store cannot be read or written (full, read-only, wrong format)."""
