"""Names and paths in a file, which may be any bytes: as HDF5 has them, and as Python does."""

__all__ = ["beside", "normal", "parts_of", "split", "text", "under"]


def parts_of(path: str) -> list[bytes]:
    """The names on the way to a dataset."""
    return [part for part in path.encode("utf-8", "surrogateescape").split(b"/") if part not in (b"", b".")]


def normal(path: str) -> str:
    """A path as others that lead there are spelled too."""
    return text(b"/".join(parts_of(path)))


def text(name: bytes) -> str:
    """A name as Python has it: UTF-8, and whatever else it is, restorable."""
    return name.decode("utf-8", "surrogateescape")


def split(path: str) -> tuple[str, str]:
    """A path's group, which is empty at the root, and the last name on it."""
    group, _, name = path.rstrip("/").rpartition("/")
    return group, name


def under(group: str, name: str) -> str:
    """The path of what stands under a name in a group."""
    return f"{group.rstrip('/')}/{name}"


def beside(dataset: str, name: str) -> str:
    """The path of what stands under a name in a dataset's group."""
    group, _ = split(dataset)
    return under(group, name) if group else name
