"""The command line `spinloop`: one file per command or group of commands, `__main__.py` puts them together.

Not here: the DAG (`flows/spin.py`), nor anything that a deployment run needs (`flows/server`).
"""
