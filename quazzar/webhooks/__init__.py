"""Webhooks: events of the feed, signed and sent to addresses that users chose, until they arrive or are given up."""
