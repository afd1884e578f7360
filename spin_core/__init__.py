"""Everything of spinloop that is true without Prefect: config, rows, chat, loss, stages, engines, artifact store.

Importing this package loads neither torch nor Prefect (tests/architecture holds it to that).
"""
