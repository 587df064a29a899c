"""Model servers: which are configured, which answer, what `vestry models` shows."""
