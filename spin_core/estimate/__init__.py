"""What a run will need, before it runs: memory, time and disk of each stage, from sizes alone. Pure functions.

Is not: a measurement (records have what steps took), nor a promise. No torch, no network; the memory model is held
against measurement by tests/estimate and `make bench-memory`. May import stages, engines (for their footprint),
runtime, data and config.
"""
