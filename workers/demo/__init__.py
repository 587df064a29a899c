"""The demo of `make run`: every kind of job, on the samples, through every local pool.

`indexing` and `kinds` are also examples of the producer library: code as an application writes it.
"""
