"""Limits on the contents of a file, and on the work needed to read it.

The child obeys these limits. The code that checks its answers uses the same limits.
"""

SMALLEST = 48  # bytes of the shortest superblock; no data can be stored before its end

MOST_OBJECTS = 2**18  # objects to examine in one group, or in a search for the rows
MOST_DEPTH = 32  # nested groups

MOST_CHUNK_BYTES = 2**26
MOST_CHUNKS = 2**22  # chunks of the rows and all extras; each index entry takes 24 bytes
MOST_COLUMNS = 2**24  # columns of a sparse matrix, which take memory but no space in a file
MOST_COLUMN_NAMES = 2**20
LONGEST_COLUMN_NAME = 2**10  # bytes; all names together are limited by `ANSWER_BYTES`
MOST_ITEM = 2**20  # bytes of one value

MAX_EXTRAS = 1000
MOST_LEFT_OUT = 50  # skipped datasets to list for one file
MOST_CATEGORIES = 2**16  # categories of one dataset
MOST_WORDS = 2**20  # bytes of all category names of one dataset
LONGEST_TEXT = 2**16  # bytes of one string, after which it is cut off, and of an array in one row
MOST_PADDED = 2**24  # bytes of all category names, each padded to the length of the longest

ANSWER_BYTES = 2**24  # bytes of values in one answer of the child
MOST_ANSWER_BYTES = 24 * MOST_CHUNKS + 2**26  # bytes of an answer; the child is killed if it sends more
