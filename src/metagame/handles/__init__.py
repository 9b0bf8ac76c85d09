"""What can be done with a result: the strongest pairs, tables, drawings, files."""
