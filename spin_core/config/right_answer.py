"""Whether an answer is right by a rule that a profile gives, where a row's real answer declares one right answer: the
rule of `evaluate.exact_match` and `gather.verifier`.

Is not: a judge of quality. What the rule does not look at does not count.
"""

from __future__ import annotations

import re

RULE = (
    "'answer': the whole answer must equal the real one. A regular expression: its first group must be equal in both "
    "(GSM8K: '#### (.+)')."
)
"""Of both fields, for people."""


def checked_rule(value: str) -> str:
    """The rule as it is. Raises ValueError for one that is no expression with a group."""
    try:
        groups = re.compile(value).groups
    except re.error as error:
        raise ValueError(f"is not a regular expression ({error})") from None
    if value not in ("", "answer") and not groups:
        raise ValueError("needs a group, as in '#### (.+)', or the word answer")
    return value


def declared(rule: str, real: str) -> str | None:
    """The right answer that a real answer declares; None where the rule does not find one."""
    if rule == "answer":
        return real.strip()
    found = re.search(rule, real)
    return None if found is None or found.group(1) is None else found.group(1).strip()


def is_right(rule: str, right: str, text: str) -> bool:
    """Whether an answer says the `right` one, as `declared` gave it."""
    return declared(rule, text) == right
