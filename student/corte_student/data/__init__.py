"""Images in, views out."""
