"""Every table of the product on one metadata, for migrations and their drift check."""

import quazzar.core.idempotency  # noqa: F401
