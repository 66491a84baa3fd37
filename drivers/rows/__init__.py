"""Training rows: read, checked, divided and described, for every objective."""
