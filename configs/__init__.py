"""One small locked config per experiment."""
