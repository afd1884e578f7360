"""A run's curves on the board of an experiment tracker, through accelerate's trackers.

A sink and nothing else: it is fed from what steps and their records say, and no result, key or decision reads it.
`curves` gives names and the step axis, `sink` is the process that one tracker runs in, `boards` knows the trackers,
`process` starts a sink from the run's own process.
"""
