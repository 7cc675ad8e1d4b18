"""Shuffling, batching and prefetching of training records."""
