"""What can be wrong with a call about jobs."""

from quazzar.core.errors import Conflict, NotFound


class JobNotFound(NotFound):
    code = "job_not_found"
    message = "There is no such job"


class JobNotCancellable(Conflict):
    code = "job_not_cancellable"
    message = "This job has ended, or must not be interrupted"


class JobNotRetryable(Conflict):
    code = "job_not_retryable"
    message = "Only a failed or cancelled job can be tried again"
