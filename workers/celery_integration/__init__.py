"""Celery: the worker's lifecycle, tasks, transport and events."""
