"""`vestry doctor`: checks of the installation, the services and the embedded stack."""
