"""The only SQL of dhara: one typed method a statement, one file a statement."""
