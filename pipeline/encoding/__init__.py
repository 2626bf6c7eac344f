"""From rows and a model to files of features."""
