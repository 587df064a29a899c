"""The benchmarks of `make bench`; each measures Vestry and its peer in the same run."""
