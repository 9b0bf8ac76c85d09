"""The HTML report: one self-contained page per scale, with every table and a browser of samples."""
