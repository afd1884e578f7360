"""TAB in real shells, as docs/first-run.md sets it up: bash, zsh and fish on a terminal."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.flows.screen import Screen, screen, take_terminal

BIN = Path(sys.executable).parent
SHELLS = {
    "bash": (["--norc"], ['eval "$(register-python-argcomplete spinloop)"']),
    "zsh": (["-f"], ["autoload -U compinit; compinit -u", 'eval "$(register-python-argcomplete spinloop)"']),
    "fish": (["--no-config"], ["register-python-argcomplete --shell fish spinloop | source"]),
}
READY = "ready-to-type"
TYPED = {
    "spinloop run zephyr-7b-l": "spinloop run zephyr-7b-lora",
    "spinloop run demo --set finetune.weight_d": "spinloop run demo --set finetune.weight_decay=",
}


@pytest.mark.parametrize("shell", SHELLS)
def test_tab_completes_in_a_shell(shell: str, tmp_path: Path) -> None:
    """Catches a shell in which the documented lines give an error or nothing: zsh without compinit has no compdef."""
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    if not (BIN / "spinloop").exists():
        pytest.skip("spinloop is not installed beside this Python")
    options, setup = SHELLS[shell]
    env = {"HOME": str(tmp_path), "TERM": "xterm", "PATH": f"{BIN}:/usr/bin:/bin", "LANG": "C.UTF-8"}
    with screen(160) as terminal:
        process = subprocess.Popen(
            [shell, *options], env=env, cwd=tmp_path, stdin=terminal.slave, stdout=terminal.slave,
            stderr=terminal.slave, preexec_fn=take_terminal,
        )  # fmt: skip
        try:
            for line in setup:
                press(terminal, f"{line}\r")
            press(terminal, f"echo {READY[:3]}''{READY[3:]}\r")  # in two parts: not what is printed
            shown(terminal, READY)
            for typed, completed in TYPED.items():
                press(terminal, f"{typed}\t")
                shown(terminal, completed)
                press(terminal, "\x15")  # Ctrl-U: the line is emptied, not run
        finally:
            process.kill()
            process.wait()


def press(terminal: Screen, keys: str) -> None:
    os.write(terminal.master, keys.encode())


def shown(terminal: Screen, text: str, seconds: float = 120) -> None:
    """Wait until a line of the terminal has the text. A TAB starts a Python, which takes seconds on a full machine."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        terminal.read()
        if any(text in line for line in terminal.lines):
            return
        time.sleep(0.05)
    pytest.fail(f"{text!r} is not shown:\n" + "\n".join(terminal.lines))
