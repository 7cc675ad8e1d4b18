"""Sources of records: folders, split lists, shards and mixtures."""
