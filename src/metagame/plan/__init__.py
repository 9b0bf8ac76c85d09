"""What an experiment will cost, before any weights are loaded."""
