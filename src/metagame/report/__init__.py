"""What people look at: tables beside published values, and figures."""
