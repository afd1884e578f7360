"""First on PYTHONPATH of a run, so that every Python process of it reports what it unpickles, where it connects beyond
loopback, and what it opens below $SPINLOOP_TEST_WATCHED: a JSON line each in $SPINLOOP_TEST_AUDIT."""

import json
import os
import sys
import traceback

AUDIT = os.open(os.environ["SPINLOOP_TEST_AUDIT"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
WATCHED = os.environ["SPINLOOP_TEST_WATCHED"]
LOOPBACK = ("127.", "::1", "localhost")


def _report(what: str, text: str) -> None:
    where = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_stack(limit=12)[:-2]]
    command = " ".join(sys.orig_argv)[:300]
    os.write(
        AUDIT,
        json.dumps({"what": what, "text": text, "by": command, "pid": os.getpid(), "where": where}).encode() + b"\n",
    )


def _hook(event: str, args: tuple) -> None:
    if event == "pickle.find_class":
        _report("pickle", f"{args[0]}.{args[1]}")
    elif event == "open" and str(args[0]).startswith(WATCHED):
        _report("open", f"{args[0]} {args[1]}")
    elif event == "socket.connect" and isinstance(args[1], tuple) and not str(args[1][0]).startswith(LOOPBACK):
        _report("connect", str(args[1]))
    elif event == "socket.getaddrinfo" and args[0] and not str(args[0]).startswith(LOOPBACK):
        _report("resolve", str(args[0]))


sys.addaudithook(_hook)
_report("start", "")
