"""The reader of blocks sees them, and every block says what it is and what it needs by the names that there are."""

from __future__ import annotations

import re

import pytest

from tests.docs import blocks
from tests.docs.blocks import LANGUAGES, NEEDS, Block, read

PAGE = """\
Text `spinloop plan` here.

<!-- needs: hub, minutes -->

```bash
spinloop import --pairs 0=a/b \\
  --model 1=c/d     # or folders
make demo
spinloop data my.jsonl --set 'dataset.columns={prompt: q#1}'
```

- a list
  ```yaml
  a: 1
  ```
"""


def test_reader_gives_language_needs_and_lines():
    """Catches a reader that misses a block, its marker, or what belongs to one command."""
    first, second = read("p.md", PAGE)
    assert (first.place, first.language, first.needs) == ("p.md:5", "bash", ("hub", "minutes"))
    data = "spinloop data my.jsonl --set 'dataset.columns={prompt: q#1}'"
    assert first.commands == ["spinloop import --pairs 0=a/b --model 1=c/d", "make demo", data]
    assert [first.needed_by(one) for one in first.commands] == [["hub"], ["minutes"], []]
    assert (second.language, second.text, second.needs) == ("yaml", "a: 1", ())


def test_block_that_nothing_ends_is_said():
    """Catches a reader that takes the rest of the page for the block."""
    with pytest.raises(ValueError, match=r"p\.md:1: nothing ends this block"):
        read("p.md", "```bash\nmake demo\n")


def test_every_block_says_what_it_is():
    """Catches a block that no test looks at because its fence says nothing."""
    assert len(blocks.blocks()) > 40
    assert not [one.place for one in blocks.blocks() if one.language not in LANGUAGES]


def test_needs_are_of_the_list_and_each_is_somebodys():
    """Catches a marker with another name, which would mark nothing, and one that no command of its block has."""
    for one in blocks.blocks():
        assert set(one.needs) <= set(NEEDS), f"{one.place}: {', '.join(one.needs)}; known are {', '.join(NEEDS)}"
        lines = one.commands if one.language == "bash" else one.text.splitlines()
        for need in one.needs:
            covered = any(re.search(NEEDS[need][1], blocks.plain(line)) for line in lines)
            assert covered, f"{one.place}: no command of it needs {need}"


def commands_outside_of_fences() -> list[str]:
    """Lines of pages that are indented as code and begin with a command."""
    begin = re.compile(r"(?m)^    (?:spinloop|make|export|pip|\.venv/bin/\w+|docker|kubectl) .*$")
    return [f"{page.name}: {line}" for page in blocks.pages() for line in begin.findall(blocks.outside(page))]


def test_commands_stand_in_fences():
    """Catches commands that only an indentation marks, which no test reads."""
    assert commands_outside_of_fences() == []


def test_comments_of_a_block_are_no_commands():
    """Catches a reader that runs a comment, or takes the # of a value for one."""
    block = Block("p.md", 1, "bash", "# on node 0\nmake demo   # 3 minutes\n\nspinloop data 'a#b.jsonl'")
    assert block.commands == ["make demo", "spinloop data 'a#b.jsonl'"]
