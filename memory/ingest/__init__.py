"""Files and folders into the long-term store: parsed, cut by structure, kept up to date."""
