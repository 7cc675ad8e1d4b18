"""What a workdir belongs to: one config, one data set. A run of anything else is refused."""
