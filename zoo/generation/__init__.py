"""From a model's outputs to text or an image."""
