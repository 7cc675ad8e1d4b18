"""DeepLabV3+ on a ResNet, and the key tables of its published weights."""
