"""The machinery behind the stages' tasks: look up, run or wait for a pool, the ledger, progress, events, artifacts.

Not here: what a stage reads (one file per stage, in `tasks/`), nor how it computes (`spin_core`).
"""
