"""Every table of the product on one metadata, for migrations and their drift check."""

# ruff: noqa: F401

import quazzar.accounts.models
import quazzar.channels.models
import quazzar.core.idempotency
import quazzar.core.jobs.models
import quazzar.core.records
import quazzar.instance.apps.models
import quazzar.instance.auth.models
import quazzar.instance.enrolment.models
import quazzar.instance.impersonation.models
import quazzar.instance.orders.models
import quazzar.instance.registries.models
import quazzar.instance.template_sources.models
import quazzar.instance.templates.models
import quazzar.invitations.models
import quazzar.panel.alerts.models
import quazzar.panel.commands.models
import quazzar.panel.fleet.metrics_models
import quazzar.panel.fleet.models
import quazzar.panel.impersonations.models
import quazzar.panel.tenants.models
import quazzar.webhooks.models
