"""What a run needs before it begins: documents, tokens, downloads, time."""
