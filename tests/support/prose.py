"""Report docstrings that open with a relative clause, and words that are wrong in every context.

    python -m tests.support.prose

The exit code is 1 if there are more than a few. Prose that passes can still be bad; the script only detects relapses.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MAX_FINDINGS = 10
CODE = ("pipeline", "kernels", "scripts", "tests")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "data/*.md")
RELATIVE_CLAUSE = re.compile(r"(What|Which|Where|Of|By|As|With|How|Who|Whose|That|When|For|In|From) [a-z]")
BANNED = (
    r"mend(s|ed|ing)?",
    r"behind (byte|row|step|the end)",
    r"(all|just) the same,",
    r"whoever",
    r"nobody('s)?",
    r"(goes|went|gone|going) on (with|behind|from)",
    r"made anew|makes? anew",
    r"counts? for nothing",
    r"by your leave",
    r"says? of",
    r"rid(e|es|ing) along",
    r"sittings?",
)
BANNED_WORDS = re.compile(r"\b(" + "|".join(BANNED) + r")\b", re.IGNORECASE)


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each docstring of a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def findings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and a description of each finding in a file."""
    text = path.read_text()
    if path.suffix == ".py":
        for line, docstring in docstrings(text):
            if RELATIVE_CLAUSE.match(docstring):
                yield line, f"the docstring opens with a relative clause: {docstring.splitlines()[0]}"
    for line, content in enumerate(text.splitlines(), 1):
        for match in BANNED_WORDS.finditer(content):
            yield line, f"banned word: {match[0]}"


def main() -> int:
    """Print all findings. Return 1 if there are too many."""
    files = [path for folder in CODE for path in sorted((ROOT / folder).rglob("*.py"))]
    files += [path for pattern in DOCUMENTS for path in sorted(ROOT.glob(pattern))]
    files.remove(Path(__file__).resolve())  # it lists the banned words
    n_findings = 0
    for path in files:
        for line, description in findings(path):
            n_findings += 1
            print(f"{path.relative_to(ROOT)}:{line}: {description}")
    print(f"{n_findings} findings in {len(files)} files, at most {MAX_FINDINGS} allowed")
    return int(n_findings > MAX_FINDINGS)


if __name__ == "__main__":
    sys.exit(main())
