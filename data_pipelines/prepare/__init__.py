"""Prepares datasets as ArrayRecord shards, on one machine or many."""
