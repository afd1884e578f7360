"""Figures of finished steps, without a model and without torch.

Here: the results that stages wrote (`results`), intervals (`statistics`), the figures of a report's rows (`summary`,
typed in `rows`), the sentence and the notes made of them (`verdict`, `training_alarms`), two runs side by side
(`run_comparison`, `profile_diff`), costs, and numbers as text (`format`).
Not here: pages and cards (`spin_core.report`), decisions (`spin_core.stages.gate`), metrics (the stages compute them).
May import: config, job, errors.
"""
