"""A chunk's filters, undone."""
