"""The train steps and the OVS models in PyTorch that ours are measured beside; needs the extra `bench`, and no JAX."""
