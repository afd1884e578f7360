"""What a dataset would be read as, before anything is paid for: files, layout, counts, rejects, lengths, first rows.

Computed by the stages themselves (reformat, tokenize), into a folder that goes; nothing enters a store, and no model is
run.
"""
