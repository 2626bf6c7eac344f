"""Forms in which files store rows, each with a class that describes and reads them."""
