"""Where records come from: folders, split lists, shards, mixtures."""
