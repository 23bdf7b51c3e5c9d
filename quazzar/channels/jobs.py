"""The job that brings a notification to a webhook, tried again as webhooks of events are."""

from datetime import UTC, datetime

import msgspec

from quazzar.channels import store
from quazzar.channels.sealing import live_secrets
from quazzar.channels.store import Scope
from quazzar.core.crypto import SealBroken
from quazzar.core.jobs import KEYRING, JobFailed, JobRun, Resource, RetryLater, job
from quazzar.core.outbound import OutboundPolicy
from quazzar.core.outbound_http import OutboundHttp
from quazzar.webhooks.sending import Message, delay_before, send


class Sending(msgspec.Struct, frozen=True):
    """What the process lends to deliveries; `schedule` are the seconds before each attempt."""

    policy: OutboundPolicy
    schedule: tuple[float, ...]


SENDING: Resource[Sending] = Resource("way to channels")


@job("channels.deliver", concurrency=32, max_attempts=100, timeout_seconds=60)
async def deliver(run: JobRun, channel_id: str, message_id: str, event: str, body: str) -> None:
    """One attempt; the schedule of the settings ends them. The message keeps its id, so a second copy is known."""
    sending = run.resources[SENDING]
    scope = Scope(run.realm, run.tenant_id)
    async with run.begin() as session:
        channel = await store.get_channel(scope, session, channel_id)
    if channel is None or not channel.enabled:
        return
    try:
        secrets = live_secrets(run.resources[KEYRING], channel, datetime.now(UTC))
    except SealBroken:
        raise JobFailed("The signing secret can't be opened: the key that it was sealed with is gone") from None
    http = OutboundHttp(sending.policy)
    try:
        outcome = await send(http, channel.url, secrets, Message(message_id, event, body.encode()))
    finally:
        await http.close()
    error = outcome.attempt.error
    async with run.begin() as session:
        if error is None:
            await store.note_delivered(scope, session, channel_id)
        else:
            await store.note_failed(scope, session, channel_id, error)
    if error is None:
        return
    delay = None if outcome.gone else delay_before(sending.schedule, run.attempt, outcome.retry_after)
    if delay is None:
        raise JobFailed(error)
    raise RetryLater(error, delay_seconds=delay)
