"""Rows: from files as people have them to prompts and real answers, shards, and pairs.

Not here: which file a name means (`sources`), how a row becomes tokens (`modeling/chat.py`).
`sandbox/` renders templates and decodes files in child processes with limits.
May import: config, job, errors.
"""
