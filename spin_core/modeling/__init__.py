"""A model as SPIN needs it: loading and saving, chat templates and tokens, packed batches, attention, log-probs of
answers (`logprobs.Policy`), the losses (`loss`), LoRA.

One forward pass serves scoring and training. Not here: optimiser steps (training), sampling (engines), files of pairs
and scores (data, stages). May import runtime, sources, data, config and job. Most modules load torch.
"""
