"""The database: tables, and the only code that changes a job's state."""
