"""Labels and confidences that a trained model predicts for images of any size."""
