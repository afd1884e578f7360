"""Every stage as a Prefect task (stages.py), and the machinery that the tasks share (runner/)."""
