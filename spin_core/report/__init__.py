"""What a person reads of a run: the report, pages of the Prefect UI, model and dataset cards; and the push to the hub.

Not here: the figures themselves (`analysis`).
May import: analysis, sources, data, store, job, errors. Text from outside is escaped before it enters a page.
"""
