"""Scores of trained models, and their plots and reports."""
