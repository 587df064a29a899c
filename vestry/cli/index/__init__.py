"""`vestry index`: documents from files, through the queue, to vectors."""
