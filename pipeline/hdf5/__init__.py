"""One file that nobody trusts, as bytes; knows no shard."""
