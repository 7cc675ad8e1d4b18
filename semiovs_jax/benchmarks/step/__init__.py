"""The train step beside PyTorch's."""
