"""The stages: one file each, fifteen with the three that make the demos' model and rows. Each has one shape: docstring,
NAME, VERSION, Config, `run(inputs, config, job)`, helpers.

A stage reads its inputs, writes into `job.out` and gives a summary; what it depends on is in its Config and its inputs,
as both are its key. Not here: sections of a profile (config), the order of stages (flows), looking up and publishing
(runtime.step). May import everything in spin_core but estimate; at its top nothing that loads torch.
"""
