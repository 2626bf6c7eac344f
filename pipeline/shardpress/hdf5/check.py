"""Check of an index or a model from another user, in a child process, before this process opens its bytes."""

import os

from shardpress.errors import DataError, ReadFailed
from shardpress.hdf5.child.ask import Refusal, ask

FORGED = "It is not a file that shardpress wrote, or it is damaged or forged: do not use it."


def check_in_child(data: bytes, where: str) -> None:
    """Raise `DataError` if libhdf5 fails on the bytes of a file, or if `check_result` refuses it.

    The child reads a copy in memory, so that the result applies to these bytes, and not to a path. `SystemLimit` is
    raised if no child can be started.
    """
    with open(os.memfd_create("shardpress"), "wb") as file:
        file.write(data)
        file.flush()
        try:
            ask("check_result", file.fileno(), [], type(None), where)
        except (DataError, ReadFailed) as error:
            reason = (
                str(error) if isinstance(error, Refusal) else f"{where}: libhdf5 fails on it, or exceeds its limits"
            )
            raise DataError(f"{reason}. {FORGED}") from error
