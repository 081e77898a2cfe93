"""Figures: one figure, one function from data to Figure; styles; files with their provenance."""
