"""The project's rules as tests. Each scanner is proved on a small bad file in test_scan.py."""
