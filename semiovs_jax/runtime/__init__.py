"""The runtime of the commands: process settings, config files, devices, signals, ahead-of-time compilation."""
