"""Words that docstrings do not begin with, in the package and in its tests."""

from __future__ import annotations

import re

RELATIVE_OPENING = re.compile(
    r"(What|Whatever|Whether|Which|Who|Whoever|Whose|Of|Nobody|Somebody|How|It)\b", re.IGNORECASE
)
"""Opening of a docstring that begins neither with a verb nor with a noun."""
