"""What a job of each kind does: one module per kind, plain functions, no Celery."""
