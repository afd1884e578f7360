"""What people see of a run: the report's page and tables, charts, model and data cards, the UI's pages, the push. The
templates of a page or a card lie beside its module.

Not here: the figures themselves (`spin_core.analysis`), the stage that writes the report (`spin_core.stages.report`).
May import: analysis, sources, data, store, config, job, errors.
"""
