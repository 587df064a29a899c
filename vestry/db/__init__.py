"""SQL of the producer library: enqueue, job queries, replay, receipts, notifications."""
