"""Row security: a transaction names the owners whose rows it may see."""

from __future__ import annotations

from typing import Final, LiteralString


def owners_setting(owners: LiteralString) -> LiteralString:
    """SQL expression that names the owners until the end of the transaction.

    Args:
        owners: SQL expression of type text[].
    """
    return f"set_config('vestry.owners', ({owners})::text, true)"


SET_OWNERS: Final = f"SELECT {owners_setting('%s::text[]')}"
"""Statement with one parameter, the list of owners."""
