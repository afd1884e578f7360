"""The picture: the DAG on one screen (spin.py) and the command line (cli.py)."""
