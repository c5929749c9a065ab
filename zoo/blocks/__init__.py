"""Functions and layers that two or more models share."""
