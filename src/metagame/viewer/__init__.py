"""The HTML report: one page per scale, with every table and a browser of samples; it loads nothing from elsewhere."""
