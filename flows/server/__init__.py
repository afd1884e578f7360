"""Runs on a Prefect server: the deployed flows, their run form, deploying them, a server that a run starts itself.

Not here: the DAG (`flows/spin.py`), nor the stages' own flows (`flows/stages.py`).
"""
