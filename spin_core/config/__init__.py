"""What a profile may say: `profile.py` reads and checks one, and the other files here have its sections.

Not here: what a stage's key holds (a stage's own `Config`, in `stages/`), and what is done with a setting.
May import: errors. Nothing here loads torch, pyarrow or Prefect: the command line and the run form read it first.
"""
