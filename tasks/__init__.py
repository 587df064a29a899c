"""Handlers of jobs: one module per kind, plain functions, no Celery."""
