"""How good features are for a classifier, beside the raw columns and as many principal components."""
