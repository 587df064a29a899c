"""`vestry doctor`: checks of the installation."""
