"""Background jobs: declared beside their domain, made in the caller's transaction, run at least once.

A domain declares `@job("domain.verb")` on a function that takes a `JobRun`, and its service calls `enqueue` with it.
"""

from quazzar.core.jobs.queue import cancel, enqueue, enqueued, retry
from quazzar.core.jobs.registry import JobKind, Schedule, job, job_kinds, job_schedules, schedule
from quazzar.core.jobs.run import KEYRING, SETTINGS, JobCancelled, JobFailed, JobRun, Resource, Resources, RetryLater
from quazzar.core.jobs.signals import JobState, changes, signals_of, wait_for
from quazzar.core.jobs.worker import Worker

__all__ = [
    "KEYRING",
    "SETTINGS",
    "JobCancelled",
    "JobFailed",
    "JobKind",
    "JobRun",
    "JobState",
    "Resource",
    "Resources",
    "RetryLater",
    "Schedule",
    "Worker",
    "cancel",
    "changes",
    "enqueue",
    "enqueued",
    "job",
    "job_kinds",
    "job_schedules",
    "retry",
    "schedule",
    "signals_of",
    "wait_for",
]
