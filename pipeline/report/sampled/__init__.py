"""What a few of the rows tell: drawn from all over the data, and measured."""
