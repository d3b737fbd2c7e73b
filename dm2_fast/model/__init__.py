"""A trained model over a pool of samples: its head, its forward passes, and what makes them fast."""
