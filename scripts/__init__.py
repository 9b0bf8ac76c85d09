"""Training of the small models, and comparisons of speed."""
