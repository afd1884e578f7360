"""lm-evaluation-harness called as a library: its tasks and evaluation (`calls`), the models that compute for it
(`backends.BACKENDS`), and its results as the stage's files (`tables`).

Not here: which tasks a profile names (config.harness), files of a local task folder (sources.task_folder). May import
what `engines` may.
"""
