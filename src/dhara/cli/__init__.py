"""The command line: thin, over the same store and library that everything else uses."""
