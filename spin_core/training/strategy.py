"""Several processes that work on one model: started together (`launch`, `join`), told the same jobs (`team`), each
holding a whole model or a part of it (`whole`, `zero`, `fsdp`: the strategies of training).

Not here: which stage runs when, and no arithmetic of SPIN. What a stage computes does not depend on how many processes
share the work, but for the rounding of sums.
"""
