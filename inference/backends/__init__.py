"""One module a runtime: each has `connect(config) -> Backend`, and maps its SDK's errors to ours.

The catalogue names a runtime by its module here, or by a dotted name for one that lives elsewhere.
"""
