"""What is known of a run once its features are written, and the morning's page: no result itself."""
