"""The embedded stack: Postgres, Valkey and all processes of `vestry up`."""
