"""The fenced blocks of README and the guides, what each needs that is not everywhere, and the commands in them.

A block says in its fence what it is (```bash, ```yaml, ```python, ```text for output and pictures). What a block needs
besides this checkout stands above the fence, where no reader sees it: `<!-- needs: hub -->`, of the names in NEEDS. Is
not: what is done with a block (test_yaml.py, test_commands.py, test_python.py).
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.architecture.scan import ROOT

ANY = r".*"
NEEDS = {
    "cluster": ("a cluster with its scheduler", r"kubectl |grep |sbatch |deployments/server-env\.sh$"),
    "cuda": ("a GPU", r"make gpu-proof MINUTES=\d+$|python3 -m tests\.gpu |spinloop run "),
    "docker": ("Docker, and images to fetch", r"docker |prefect worker |deployments/server-env\.sh$"),
    "fish": ("that shell", r".*--shell fish"),
    "hub": ("the Hugging Face hub", r"spinloop (import|plan|run|evaluate|push) (?!.*--dry-run)"),
    "minutes": ("minutes of both cores", r"make |spinloop (run|sweep|evaluate) (?!.*--plan)|.*\bapi\.run\("),
    "nodes": ("a second machine", r"SPINLOOP_NODE_RANK=\d |spinloop join$"),
    "registry": ("a package registry", r"\.venv/bin/pip |make (gpu-kit|vllm-env)"),
    "s3": ("a bucket", r"export AWS_|spinloop .*--store s3:|spinloop store .* …$"),
    "server": ("a Prefect server that stays", r"make (server|worker)|spinloop deploy|prefect |tensorboard "),
    "vllm": ("vLLM's environment", r"spinloop run .*engine=vllm"),
}
"""What a block may need: in words, and which of its commands need it. All others of the block are run all the same."""

LANGUAGES = ("bash", "yaml", "python", "diff", "json", "text")
FENCE = re.compile(r"( *)```(\S*)(?: title=\"([^\"]+)\")?\s*$")
NEEDED = re.compile(r"<!-- needs: ([\w, ]+) -->$")
INLINE = re.compile(r"(?<![`\w])`((?:spinloop|make|python3? -m)\s[^`]+)`(?!`)")
COMMENT = re.compile(r"(?m)(?:^|(?<=\s))#.*$")


@dataclass(frozen=True)
class Block:
    """One fenced block. `line` is its fence's; `title` the file of this repository that it is a part of, or nothing."""

    page: str
    line: int
    language: str
    text: str
    needs: tuple[str, ...] = ()
    title: str = ""

    @property
    def place(self) -> str:
        """As an editor takes it: `docs/data.md:3`."""
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Of a bash block, one a line, without comments; a line that goes on behind `\\` is one."""
        lines = COMMENT.sub("", self.text.replace("\\\n", " ")).splitlines()
        return [" ".join(line.split()) for line in lines if line.strip()]

    def needed_by(self, command: str) -> list[str]:
        """What this command of the block needs that a test has not."""
        return [name for name in self.needs if re.match(NEEDS[name][1], plain(command))]

    @property
    def runs(self) -> list[str]:
        """The commands of a bash block that need nothing which a test has not."""
        return [one for one in self.commands if not self.needed_by(one)] if self.language == "bash" else []


def plain(command: str) -> str:
    """`.venv/bin/spinloop` and `.venv/bin/prefect` are the command of that name."""
    return re.sub(r"^\.venv/bin/(?=spinloop|prefect)", "", command)


def pages() -> list[Path]:
    """README and the guides: what a reader follows."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]


def read(page: str, text: str) -> list[Block]:
    """The blocks of a page. Raises ValueError, with its place, for a fence that nothing ends."""
    lines, found, at = text.split("\n"), list[Block](), 0
    while at < len(lines):
        if not (opened := FENCE.match(lines[at])):
            at += 1
            continue
        indent, language, title = opened.groups()
        end = next((n for n in range(at + 1, len(lines)) if lines[n].strip() == "```"), None)
        if end is None:
            raise ValueError(f"{page}:{at + 1}: nothing ends this block")
        above = next((line.strip() for line in reversed(lines[:at]) if line.strip()), "")
        needed = NEEDED.match(above)
        needs = tuple(name.strip() for name in needed[1].split(",")) if needed else ()
        inside = "\n".join(line.removeprefix(indent) for line in lines[at + 1 : end])
        found.append(Block(page, at + 1, language, inside, needs, title or ""))
        at = end + 1
    return found


@cache
def blocks() -> list[Block]:
    """Of all pages."""
    return [one for page in pages() for one in read(str(page.relative_to(ROOT)), page.read_text(encoding="utf-8"))]


def of(language: str) -> list[Block]:
    """All blocks of one language."""
    return [one for one in blocks() if one.language == language]


def outside(page: Path) -> str:
    """The page without its fenced blocks."""
    kept, within = list[str](), False
    for line in page.read_text(encoding="utf-8").split("\n"):
        if line.strip().startswith("```"):
            within = not within
        elif not within:
            kept.append(line)
    return "\n".join(kept)


def inline() -> list[tuple[str, str]]:
    """(page, command) of every `spinloop …`, `make …` and `python -m …` that a sentence has; of alternatives (`--kind
    docker|kubernetes`) the first."""
    return [
        (str(page.relative_to(ROOT)), re.sub(r"\|\w+", "", " ".join(command.split())))
        for page in pages()
        for command in INLINE.findall(outside(page))
    ]


def words(command: str) -> list[list[str]]:
    """The words of a command line as a shell splits it, pipelines and lists apart: `a x | b` is [[a, x], [b]]."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|;&")
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("|;&"):
            parts.append([])
        else:
            parts[-1].append(word)
    return parts
