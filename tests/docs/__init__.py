"""What README and the guides have a reader type is so: their blocks are read here as a reader copies them, and run."""
