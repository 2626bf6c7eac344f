"""The output directory: one file is the result, and a journal names the files of a run that is not finished."""
