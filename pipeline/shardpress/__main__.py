"""Entry point of `python -m shardpress` and of the console command."""

from shardpress.commands.registry import shardpress

if __name__ == "__main__":
    shardpress()
