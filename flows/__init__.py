"""The DAG on one screen (spin.py), its plan and its cost sheet; the command line (cli/), runs on a server (server/)."""
