"""Models by name: the one inside this package, and published ones that are fetched once."""
