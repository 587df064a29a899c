"""Execution of jobs: fetch, claim, run, finish, heartbeat, watchdog. No Celery."""
