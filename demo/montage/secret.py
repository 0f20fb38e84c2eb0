import os
import secrets
from pathlib import Path


def secret_key(path: Path) -> str:
    """The key kept in `path`, made at the first call: each checkout has its own, none is committed.

    Sessions are signed with it, so it must stay the same from one start to the next.
    """
    if not path.exists():
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_urlsafe(50))
        try:
            os.link(draft, path)  # whole or not at all, and the first of two processes wins
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text().strip()
