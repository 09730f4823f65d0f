"""Import this first: it restarts the script in the tools' own Python environment, which launch/setup makes.
A script that was started from another virtual environment stays in that one."""
import os
import sys
from pathlib import Path

_environment = Path(__file__).resolve().parent.parent / ".venv-tools"

if sys.prefix == sys.base_prefix:
    _python = _environment / "bin" / "python"
    if not _python.exists():
        sys.exit(f"{Path(sys.argv[0]).name}: {_environment} is missing; run launch/setup")
    os.execv(_python, [str(_python), *sys.argv])
