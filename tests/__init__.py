"""A package, so that `python3 -m tests.gpu` is this one, whatever an installed package calls its own tests."""
