"""`vestry submit`: one subcommand per kind of job."""
