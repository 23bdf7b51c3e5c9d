"""What can be wrong with a call on a command."""

from quazzar.core.errors import Conflict, Forbidden, NotFound


class CommandNotFound(NotFound):
    code = "command_not_found"
    message = "There is no such command"


class CommandEnded(Conflict):
    code = "command_ended"
    message = "The command has ended"


class CommandNotPausable(Conflict):
    code = "command_not_pausable"
    message = "Only a command that waits for its moment or runs can be paused"


class CommandNotPaused(Conflict):
    code = "command_not_paused"
    message = "The command is not paused"


class CommandNotRetryable(Conflict):
    code = "command_not_retryable"
    message = "Only a command that has ended can be tried again, on the instances where it failed or expired"


class CommandOutOfReach(Forbidden):
    code = "command_out_of_reach"
    message = "The command is about instances besides those that you are bound to"
