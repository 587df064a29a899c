"""The `vestry` command."""
