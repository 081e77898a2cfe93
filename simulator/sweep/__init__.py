"""What-if sweeps: a product of settings, run point by point, kept in a store, summed up in a row a point."""
