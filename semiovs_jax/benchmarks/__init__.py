"""Measured claims of the project, each one command."""
