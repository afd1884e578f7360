"""What a profile may say: `profile.py` reads and checks one, and each section of it is a file here.

Not here: what a stage's key holds (a stage's own `Config`, in `stages/`), and what is done with a setting.
May import: errors. Nothing here loads torch, pyarrow or Prefect: the command line and the run form read it first.
"""
