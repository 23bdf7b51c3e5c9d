"""Notification channels: where a tenant is told what needs somebody, over signed webhooks and by mail."""
