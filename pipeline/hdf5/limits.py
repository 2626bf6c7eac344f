"""Limits on what a file may contain or make the program do.

The child and the plain reader keep to these limits, and the checks of their answers use the same ones.
"""

__all__ = [
    "ANSWER_BYTES",
    "LONGEST_COLUMN_NAME",
    "MOST_ANSWER_BYTES",
    "MOST_CATEGORIES",
    "MOST_CHUNKS",
    "MOST_CHUNK_BYTES",
    "MOST_COLUMNS",
    "MOST_COLUMN_NAMES",
    "MOST_DEPTH",
    "MOST_ITEM",
    "MOST_LEFT_OUT",
    "MOST_OBJECTS",
    "MOST_PADDED",
    "MOST_PIECES",
    "MOST_RIDERS",
    "MOST_TEXT_BYTES",
    "MOST_WORDS",
    "SMALLEST",
]

SMALLEST = 48  # bytes of the shortest superblock: no data can lie before its end

MOST_OBJECTS = 100_000  # that are looked at, in one group or while a dataset is searched
MOST_DEPTH = 32  # of groups
MOST_PIECES = MOST_OBJECTS  # that one file may stack

MOST_CHUNK_BYTES = 2**26
MOST_CHUNKS = 2**22  # of the rows and all riders: their places take 24 bytes each
MOST_COLUMNS = 2**24  # of sparse rows, which take no place in a file but do in memory
MOST_COLUMN_NAMES = 2**20
LONGEST_COLUMN_NAME = 2**10  # bytes; of all names `ANSWER_BYTES`
MOST_ITEM = 2**20  # bytes of one value

MOST_RIDERS = 1000
MOST_LEFT_OUT = 50  # that are told of one file
MOST_CATEGORIES = 2**16  # of one dataset
MOST_WORDS = 2**20  # bytes of the names of all categories of one dataset
MOST_TEXT_BYTES = 2**26  # of one text of any length, which the child holds several times while it reads it
MOST_PADDED = 2**24  # bytes of all their names, each made as long as the longest

ANSWER_BYTES = 2**24  # of values, in one answer of the child
MOST_ANSWER_BYTES = 24 * MOST_CHUNKS + 2**26  # of which nothing more is heard
