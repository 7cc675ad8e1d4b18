"""SED: the aggregator, its decoder, the key tables of its published weights, and its weight file."""
