"""Split lists: the published ones, verified, or a class-balanced draw."""
