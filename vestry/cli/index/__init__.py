"""`vestry index`: documents from files."""
