"""Errors of command line, configuration and run, each explained in one sentence."""
