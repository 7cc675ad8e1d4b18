"""Evaluation: mIoU from one confusion matrix, on a few padded shapes."""
