"""Search over indexed documents: vector search, reranking, hits."""
