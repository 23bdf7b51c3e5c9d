"""Every table of the product on one metadata, for migrations and their drift check."""

import quazzar.accounts.models
import quazzar.core.idempotency
import quazzar.core.jobs.models
import quazzar.panel.tenants.models  # noqa: F401
