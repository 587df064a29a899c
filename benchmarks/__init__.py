"""What `make bench` measures, each beside what it is compared with, in one run."""
