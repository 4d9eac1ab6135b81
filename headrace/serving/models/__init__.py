"""Models: one small interface, a module for each format behind it, and the table of formats."""
