"""Looks at the data of a run before training: one message for everything that is wrong."""
