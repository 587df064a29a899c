"""The catalogue of models: schema, loading, the default embedding model."""
