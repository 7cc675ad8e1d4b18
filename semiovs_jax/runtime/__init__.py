"""How a program runs on machines: commands, devices, signals, compilation."""
