"""Published weights to our parameters: one key table per model, converted strictly."""
