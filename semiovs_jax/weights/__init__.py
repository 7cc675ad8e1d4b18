"""Weight files: read, rename strictly, save, ship."""
