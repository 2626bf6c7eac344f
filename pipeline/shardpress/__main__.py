"""Entry point of `python -m shardpress` and of the console command; `shardpress` has loaded `pipeline` before."""

from pipeline.commands.table import shardpress

if __name__ == "__main__":
    shardpress()
