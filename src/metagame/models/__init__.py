"""What is explained: adapters that turn a sample into something an attribution method can mask and attribute."""
