"""Database work of the producer library: operations, enqueue, job queries, replay, receipts."""
