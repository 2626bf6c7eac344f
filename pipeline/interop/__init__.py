"""What other libraries see of a model: scikit-learn's face, and files for other runtimes."""
