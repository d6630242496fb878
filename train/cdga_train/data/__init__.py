"""Data sets: labelled sources and unlabelled targets. Nothing here needs torch."""
