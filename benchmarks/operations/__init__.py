"""What an operator relies on: bounds under overload, fair shares, endings that lose nothing, flat memory."""

import json
from pathlib import Path
from typing import Any


def tell(found: dict[str, Any], write: Path | None) -> None:
    """Print what was measured as JSON, and keep it in a file where one is named."""
    text = json.dumps(found, indent=2)
    print(text)
    if write:
        write.write_text(text + "\n")
