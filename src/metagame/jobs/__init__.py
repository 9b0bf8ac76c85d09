"""A job: from its config to its records."""
