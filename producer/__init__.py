"""The job-submission SDK and the `farm` command line. Light: no torch."""
