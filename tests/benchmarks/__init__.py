"""Measurements, not tests: run by a named command, their tables quoted in the README."""
