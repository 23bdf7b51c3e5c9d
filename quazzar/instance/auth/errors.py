"""Why an instance can't be set up."""

from quazzar.core.errors import Conflict, Forbidden


class SetupDone(Conflict):
    code = "setup_done"
    message = "This server has been set up already"


class SetupTokenRequired(Forbidden):
    code = "setup_token_required"
    message = "Setting up from another machine needs the token from the server's log or its file setup-token"
