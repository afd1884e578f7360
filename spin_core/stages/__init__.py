"""The eight stages: one file each, one shape (docstring, VERSION, section, Config, run, helpers)."""
