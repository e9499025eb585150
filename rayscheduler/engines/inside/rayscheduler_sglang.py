"""Starts SGLang's server with the key that came by the environment: SGLang takes it in argv only.

Arguments: those of `python -m sglang.launch_server`. The program's own argv, which other users can read,
stays as it is; what it starts gets its settings through pipes.

Rules of this file: see the folder's. SGLang starts processes that import this file, so nothing happens then.
"""

from __future__ import annotations

import os
import runpy
import sys

KEY_ENV = "RAYSCHEDULER_API_KEY"


def main() -> None:
    key = os.environ[KEY_ENV]
    sys.argv[1:] = [*sys.argv[1:], "--api-key", key]
    sys.path.pop(0)  # this folder
    runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
