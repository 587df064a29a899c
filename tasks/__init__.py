"""Handlers of jobs: one module per kind, plain callables, no Celery."""
