"""shardpress: HDF5 shards in, compact autoencoder features out. The files stand in the README in the data's order."""
