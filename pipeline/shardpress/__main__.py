"""Entry point of `python -m shardpress` and of the console command. `shardpress` has already loaded `pipeline`."""

from pipeline.commands.table import shardpress

if __name__ == "__main__":
    shardpress()
