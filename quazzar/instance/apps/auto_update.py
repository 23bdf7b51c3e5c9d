"""What owners may say of updates of their apps that nobody asks for."""

from datetime import UTC, datetime
from typing import Any

import msgspec

from quazzar.core.schema import given
from quazzar.instance.apps import store, updates_store
from quazzar.instance.apps.building import template_of
from quazzar.instance.apps.schemas import CRON, ZONE, AutoUpdateIn
from quazzar.instance.apps.service import AppService
from quazzar.instance.apps.updates_store import Policy
from quazzar.instance.apps.windows import Window, is_cron, is_zone, opening
from quazzar.instance.templates.errors import TemplateNotFound, TemplateVersionNotFound
from quazzar.instance.templates.service import TemplateService


def laid_over(former: Policy, data: AutoUpdateIn | None) -> Policy:
    """What becomes of a policy; one that is taken back is a fresh one. Nothing is checked here, see `problems_of`."""
    if data is None:
        return Policy()
    values: dict[str, Any] = given(data)
    if values.get("window") is not None:
        values["window"] = msgspec.convert(data.window, Window, from_attributes=True)
    if "skip_versions" in values:
        skip = list(dict.fromkeys(values["skip_versions"] or ()))
        values |= {
            "skip_versions": skip,
            # What is taken out of the list may be tried again.
            "skipped": [one for one in former.skipped if {*one.digests, one.version} & set(skip)],
        }
    return msgspec.structs.replace(former, **values, waits_for=None)


async def problems_of(apps: AppService, app: store.Held, data: AutoUpdateIn | None) -> dict[str, str]:
    """A sentence for every field of `auto_update` that can't be."""
    if data is None:
        return {}
    problems: dict[str, str] = {}
    values = given(data)
    if (window := values.get("window")) is not None:
        if not is_cron(window.cron):
            problems["window.cron"] = CRON.format(label="Cron")
        if not is_zone(window.timezone):
            problems["window.timezone"] = ZONE.format(label="Timezone")
    if (version := values.get("hold_version")) is not None and version != app.version:
        problem = await _hold_problem(apps, app, version)
        if problem is not None:
            problems["hold_version"] = problem
    if (canary := values.get("canary_app")) is not None:
        problem = await _canary_problem(apps, app, canary)
        if problem is not None:
            problems["canary_app"] = problem
    return {f"auto_update.{name}": problem for name, problem in problems.items()}


async def _hold_problem(apps: AppService, app: store.Held, version: str) -> str | None:
    if app.template is None:
        return "An app that is not from the catalogue has no versions"
    try:
        await TemplateService(apps.session).find_newer(template_of(app), version)
    except (TemplateNotFound, TemplateVersionNotFound):
        return "The template has no such version"
    return None


async def _canary_problem(apps: AppService, app: store.Held, canary_id: str) -> str | None:
    canary = await updates_store.get_canary(apps.session, canary_id) if apps.may_see(canary_id) else None
    if canary is None:
        return "There is no such app"
    if canary_id == app.id:
        return "An app can't be its own canary"
    if app.template is None or canary.template != app.template:
        return "The canary must be another app of the same template"
    following = await updates_store.find_canaries(apps.session)
    seen: set[str] = {app.id}
    one: str | None = canary_id
    while one is not None:
        if one in seen:
            return "The canary waits for this app itself"
        seen.add(one)
        one = following.get(one)
    return None


def with_opening(former: Policy, policy: Policy) -> Policy:
    """`policy` with the time of its next window, which only a change of when it may begin sets anew."""
    if (former.enabled, former.window) == (policy.enabled, policy.window):
        return policy
    opens_at = opening(policy.window, datetime.now(UTC)) if policy.enabled and policy.window is not None else None
    return msgspec.structs.replace(policy, opens_at=opens_at)


def shown(policy: Policy) -> dict[str, Any]:
    """For the audit log."""
    names = ("enabled", "window", "hold_version", "skip_versions", "canary_app")
    return {name: msgspec.to_builtins(getattr(policy, name)) for name in names}
