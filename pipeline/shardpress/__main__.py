"""`python -m shardpress`, and what the console command starts: for both, `pipeline` is ours by now."""

from pipeline.commands.table import shardpress

if __name__ == "__main__":
    shardpress()
