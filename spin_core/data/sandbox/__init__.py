"""What opens files and templates from strangers: children with limits on time and memory, and no code of the file's.

Not here: what the rows mean. A child is started by path and imports nothing of spin_core.
May import: config, job, errors.
"""
