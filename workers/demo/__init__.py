"""What `make run` runs: every kind of job, on the samples, through every local pool.

It is also an example of the producer library: `indexing` and `kinds` are what a backend would write.
"""
