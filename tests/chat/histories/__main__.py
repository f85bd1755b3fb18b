"""Print a history as SQL."""

import sys
from pathlib import Path

from tests.chat.histories import dump

print(dump(Path(sys.argv[1])), end="")
