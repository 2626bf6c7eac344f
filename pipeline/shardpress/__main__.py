"""Entry point of `python -m shardpress` and of the console command. Here `pipeline` is the package of shardpress."""

from pipeline.commands.table import shardpress

if __name__ == "__main__":
    shardpress()
