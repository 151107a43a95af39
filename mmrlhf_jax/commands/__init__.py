"""What the verbs of the command line do with their options, where that is more than one call."""
