"""Files that are the old one or the new one, never a part."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file beside ``path``, then put it in its place at once.

    A pipe or a device keeps its identity: it is written to, not replaced. So is what a link points to.

    Raises:
        OSError: it can't be written; what was there before still is.
    """
    target = path.resolve()
    if target.exists() and not target.is_file():
        write(target)
        return
    # As long as a name may be in bytes; a character takes up to four.
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:30]}.", suffix=target.suffix[:20], dir=target.parent)
    draft = Path(name)
    try:
        write(draft)
        os.fsync(descriptor)
        if target.exists():
            shutil.copymode(target, draft)
        else:
            draft.chmod(0o666 & ~_umask())
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
