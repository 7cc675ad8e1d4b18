"""Split lists: downloads and verifies the published ones, or draws a class-balanced one."""
