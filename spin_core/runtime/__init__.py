"""How one step is run: looked up in the store, or computed in a child process, on the GPUs and nodes that it has.

Not here: what a stage computes (`stages`), in which order (`flows/spin.py`), nor Prefect (`tasks`).
May import: sources, store, job, config, errors. Only `process_group.py` and `worker.py` run inside the child.
"""
