"""minigrad against PyTorch: the same inputs, the same upstream gradient, the same values and gradients."""
