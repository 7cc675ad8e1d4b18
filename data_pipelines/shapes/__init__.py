"""The embedded benchmark "shapes"."""
