"""A look at a dataset as plain text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spin_core.analysis.format import percent, plural
from spin_core.preview.facts import SHARES, Look

NOT_READ = 8  # files that are not read, of those that are named


def sentence(look: Look) -> str:
    """What came of it, in one sentence."""
    rejected = sum(one.count for one in look.rejected)
    text = f"{plural(look.read, 'row')} read: {look.train:,} to train on, {look.test:,} held out, {rejected:,} rejected"
    if look.unit == "tokens":
        text += f"; {look.tokens:,} tokens"
    return f"{text}."


def text(look: Look) -> str:
    """The whole look."""
    parts = [f"{look.name}: {sentence(look)}"]
    parts += [part(look) for part in (_files, _sets, _layout, _columns, _rejected, _lengths, _first)]
    parts += ["\n".join(f"note: {note}" for note in look.notes)]
    return "\n\n".join(part for part in parts if part)


def _files(look: Look) -> str:
    read = [(file.use, file.name, plural(file.rows, "row")) for file in look.files if file.use]
    left = [("not read", file.name, file.why) for file in look.files if not file.use]
    more = [("not read", f"{len(left) - NOT_READ:,} more", "")] if len(left) > NOT_READ else []
    return "Files\n" + aligned([*read, *left[:NOT_READ], *more])


def _sets(look: Look) -> str:
    lines = [
        (name, f"{of['train_rows']:,} to train on", f"{of['test_rows']:,} held out", f"{of['not_drawn']:,} not drawn")
        for name, of in look.sets.items()
    ]
    return "Sets\n" + aligned(lines) if lines else ""


def _layout(look: Look) -> str:
    lines = [(name, plural(count, "row")) for name, count in look.layouts.items()]
    return "Layout, as dataset.columns says it\n" + aligned(lines) if lines else ""


def _columns(look: Look) -> str:
    lines = [(one.name, f"in {plural(one.filled, 'row')}", used(one.used_as, one.filled)) for one in look.columns]
    left = "".join(f"\n  {sentence}" for sentence in look.unused)
    return "Columns\n" + aligned(lines) + left if lines else ""


def used(used_as: str, filled: int) -> str:
    """What a column is used as."""
    return f"used as {used_as}" if used_as else "not used" if filled else "empty"


def _rejected(look: Look) -> str:
    lines = []
    for one in look.rejected:
        by = " (tokenize)" if one.step == "tokenize" else ""
        lines.append(f"  {one.reason}: {one.count:,}{by}")
        lines += [f"      {example.place}: {example.detail}" for example in one.examples]
        if one.count > len(one.examples):
            lines.append("      …")
    if look.further_answers:
        lines.append(f"  ({plural(look.further_answers, 'row')} beside them answer a prompt that another row has, too)")
    return "Rejected\n" + "\n".join(lines) if lines else "Rejected: none."


def _lengths(look: Look) -> str:
    if not any(one.count for one in look.lengths):
        return ""
    head = ("", *SHARES)
    lines = [(one.name, *(f"{one.quantiles[share]:,}" for share in SHARES)) for one in look.lengths if one.count]
    under = "".join(f"\n  {cut}" for cut in cuts(look))
    return f"Lengths in {look.unit}\n" + aligned([head, *lines], right=True) + under


def cuts(look: Look) -> list[str]:
    """What settings and template would cut or change, a clause each."""
    lost = {"prompt": "would lose a part", "answer": "would lose their end"}
    made = [
        f"{limit.cut:,} of {one.count:,} {one.name}s ({percent(limit.cut / one.count)}) {lost[one.name]} at "
        f"{limit.setting} {limit.value:,}"
        for one in look.lengths
        for limit in one.limits
        if one.count
    ]
    if look.rewritten:
        made.append(f"of {plural(look.rewritten, 'answer')} the chat template makes another text")
    return made


def _first(look: Look) -> str:
    lines = []
    for one in look.first:
        lines.append(f"{one.place}" + (f": rejected, {one.reject}" if one.reject else ""))
        if not one.reject:
            lines += [f"  │ {line}" for line in one.prompt.split("\n")]
            lines += [f"  ┃ {line}" for line in one.answer.split("\n")]
    seen = ", as the model sees them (│ given, ┃ learnt)" if look.unit == "tokens" else " (│ prompt, ┃ answer)"
    return f"First rows{seen}\n" + "\n".join(lines) if lines else ""


def aligned(lines: Iterable[Sequence[str]], right: bool = False) -> str:
    """Lines of cells in columns; `right`: figures, behind a name."""
    lines = list(lines)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]

    def padded(i: int, cell: str) -> str:
        return cell.rjust(widths[i]) if right and i else cell.ljust(widths[i])

    drawn = ("  ".join(padded(i, cell) for i, cell in enumerate(line)) for line in lines)
    return "\n".join(f"  {line}".rstrip() for line in drawn)
