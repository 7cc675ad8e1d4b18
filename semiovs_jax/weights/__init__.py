"""Weight files: read published ones, rename their tensors strictly, save, ship."""
