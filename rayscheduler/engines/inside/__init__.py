"""Programs that run inside an engine's own Python environment or container, where rayscheduler is not installed.

Rules of this folder: each file stands alone, imports the standard library and, late, its engine. The folder
itself is on the path there, so names are ones that no package has. Python 3.9 and later.
"""

from __future__ import annotations

import os

INSIDE_FOLDER = os.path.dirname(os.path.abspath(__file__))
