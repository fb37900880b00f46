"""Real servers for the tests: each is private to the run, on a port of its own, and stopped at its end."""
