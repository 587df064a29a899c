"""One module per runtime: each has `connect(config) -> Backend` and maps its SDK's errors.

The catalogue names a runtime by its module here, or by the dotted name of a module elsewhere.
"""
