"""From rows to trained parameters."""
