"""From a name to content: folders, hub ids and artifacts of the store, each resolved to a digest and a path.

Not here: the reading of rows (`data`), nor writing to the hub (`report/hub_push.py`).
May import: data, store, config, errors.
"""
