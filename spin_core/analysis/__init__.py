"""Numbers about models and runs: what evaluate, harness and gate wrote, their intervals, comparisons, costs.

Not here: metrics of a model (`stages/evaluate.py` computes them), nor pages (`report`).
May import: config, errors. Loads neither torch nor pyarrow.
"""
