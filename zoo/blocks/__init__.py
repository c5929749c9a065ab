"""Layers and block functions that two or more models share."""
