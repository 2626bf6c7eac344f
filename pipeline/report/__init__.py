"""What is known of a run once its features are written: read from its output, and never a result itself."""
