"""Vestry: a job queue for AI work that keeps private text on your own machines."""
