"""Removes coverage's files of processes that were killed while they wrote them.

The name of the plugin that knows a file's lines is written after the lines. Tests kill servers
at any time, and ``coverage combine`` refuses all files over one that lacks the name.

python tools/drop_cut_coverage.py FOLDER
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

WITHOUT_PLUGIN = """
SELECT count(*) FROM file LEFT JOIN tracer ON tracer.file_id = file.id
WHERE file.path LIKE '%.p_x' AND coalesce(tracer.tracer, '') = ''
"""


def is_cut(path: Path) -> bool:
    """Whether a file lacks what its process was about to write."""
    try:
        with closing(sqlite3.connect(path)) as data:
            return bool(data.execute(WITHOUT_PLUGIN).fetchone()[0])
    except sqlite3.DatabaseError:
        return True


def main() -> None:
    """Looks at each file of the folder of the first argument, and says how many it removed."""
    files = list(Path(sys.argv[1]).glob(".coverage.*"))
    cut = [path for path in files if is_cut(path)]
    for path in cut:
        path.unlink()
    print(f"{len(cut)} of {len(files)} processes were killed while they wrote what they had run")


if __name__ == "__main__":
    main()
